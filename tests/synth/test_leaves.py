"""Dead leaves look like nothing, but statistically like photographs; a painter keeps them images."""

import pytest
import torch

from zaq.config.card import Card
from zaq.config.normalizations import NORMALIZATIONS
from zaq.synth.leaves import Painter, dead_leaves


def test_no_two_are_alike_and_together_they_have_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    images = dead_leaves(256, (3, 32, 32))
    assert images.mean().abs() < 0.1 and 0.8 < images.std() < 1.2
    each = images.flatten(1)
    similar = torch.corrcoef(each) - torch.eye(len(each))
    assert similar.max() < 0.95 and similar.abs().mean() < 0.3


def test_neighbours_are_alike_and_edges_are_sharp() -> None:
    """As in photographs, and unlike noise: differences of neighbours are mostly small, with tails far beyond a
    Gaussian's.
    """
    torch.manual_seed(0)
    images = dead_leaves(128, (1, 64, 64))
    steps = images[..., 1:] - images[..., :-1]
    assert steps.std() < 0.5 * images.std()
    kurtosis = (steps - steps.mean()).pow(4).mean() / steps.var() ** 2
    assert kurtosis > 6


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 7, 5), (3, 96, 150), (4, 16, 16)])
@pytest.mark.parametrize("classes", [None, 10])
def test_a_painter_draws_images_of_any_size_within_what_a_pixel_can_be(
    shape: tuple[int, ...], classes: int | None
) -> None:
    card = Card(input=shape, mean=(0.4,) * shape[0], std=(0.2,) * shape[0])
    painter = Painter(card, 8, classes)
    images, labels = painter.sample(6)
    assert images.shape == (6, *shape) and (labels is None) == (classes is None)
    low, high = card.bounds()
    assert (images >= low).all() and (images <= high).all()
    images.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in painter.parameters())


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_canvas_has_the_contrast_of_a_pixels_range(name: str) -> None:
    torch.manual_seed(0)
    card = Card(input=(3, 32, 32), **dict(zip(("mean", "std"), NORMALIZATIONS[name], strict=True)))
    low, high = card.bounds()
    pixels = (Painter(card, 8).source(64) - low) / (high - low)
    assert 0.35 < pixels.mean() < 0.65 and 0.15 < pixels.std() < 0.35


def test_labels_change_what_is_painted() -> None:
    painter = Painter(Card(input=(3, 16, 16)), 8, 4).eval()
    canvas = painter.source(3)
    first, second = (painter(canvas, torch.full((3,), label)) for label in (0, 1))
    assert not torch.allclose(first, second)


def test_a_part_is_left_unpainted() -> None:
    painter = Painter(Card(input=(3, 16, 16)), 8, 4)
    with torch.no_grad():
        painter.last.bias.fill_(100.0)  # whatever is painted is white
    white = (painter.draw(8, 0.25) == painter.high).flatten(1).all(1)
    assert white.tolist() == [True] * 6 + [False] * 2
    assert (painter.draw(8) == painter.high).all() and not (painter.draw(8, 1.0) == painter.high).all()
