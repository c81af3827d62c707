"""Drawings: of any size and number of channels, none like another, mostly two values."""

import pytest
import torch

from zaq.config.card import Card
from zaq.synth.drawings import drawings

CIFAR = Card(input=(3, 32, 32), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))


@pytest.mark.parametrize("shape", [(3, 48, 320), (1, 28, 28), (4, 7, 5)])
def test_pixels_are_pixels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images = drawings(8, Card(input=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0]))
    assert images.shape == (8, *shape) and float(images.min()) >= 0 and float(images.max()) <= 1


def test_they_are_ink_on_paper_and_unlike() -> None:
    torch.manual_seed(0)
    images = drawings(64, Card(input=(3, 64, 64), mean=(0.0,) * 3, std=(1.0,) * 3))
    values = [image.flatten(1).unique(dim=1) for image in images]
    assert all(v.shape[1] == 2 for v in values)
    stark = sum(set(v.flatten().tolist()) == {0.0, 1.0} for v in values)
    assert 30 < stark < 60
    ink = (images != images[:, :, :1, :1]).any(1).float().mean((1, 2))
    assert 0.05 < float(ink.minimum(1 - ink).mean()) < 0.4
    assert len({image.numpy().tobytes() for image in images}) == 64


def test_the_same_numbers_draw_the_same() -> None:
    torch.manual_seed(1)
    one = drawings(4, CIFAR)
    torch.manual_seed(1)
    assert torch.equal(one, drawings(4, CIFAR))


def test_black_and_white_are_what_the_card_says() -> None:
    low, high = CIFAR.bounds()
    images = drawings(32, CIFAR)
    torch.testing.assert_close(images.amin((0, 2, 3)), low.flatten())
    torch.testing.assert_close(images.amax((0, 2, 3)), high.flatten())
