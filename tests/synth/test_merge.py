"""Generators that share their weights: what an average of them draws, and what one that begins as another has of it."""

import pytest
import torch
from torch import Tensor, nn

from zaq.config.card import Card
from zaq.errors import SourceError
from zaq.synth.biggan import BigGAN
from zaq.synth.generators import DCGAN, Generator
from zaq.synth.leaves import Painter
from zaq.synth.merge import architecture, averaged, begun, described, shared

CARD = Card(input=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def painter(seed: int, classes: int | None = 5) -> Painter:
    torch.manual_seed(seed)
    return Painter(CARD, 8, classes)


def dcgan(seed: int, classes: int = 5) -> DCGAN:
    torch.manual_seed(seed)
    return DCGAN(CARD, 8, 8, classes)


@torch.no_grad()
def drawn(generator: Generator, label: int) -> Tensor:
    """Always from the same canvases or numbers, all of one class."""
    torch.manual_seed(9)
    images: Tensor = generator(generator.source(6), torch.full((6,), label))
    return images


@pytest.mark.parametrize("kind", [painter, dcgan])
def test_the_average_of_equal_weights_draws_what_each_network_and_class_did(kind) -> None:  # type: ignore[no-untyped-def]
    """Equal but for their tables of classes, of which the second has more."""
    first, second = kind(0), begun(kind(1, 7), kind(0))
    one, other = averaged([first, second])
    for original, mixed in ((first, one), (second, other)):
        for label in range(5):
            torch.testing.assert_close(drawn(mixed, label), drawn(original, label))
    assert (drawn(one, 0) - drawn(other, 0)).abs().mean() > 1e-3  # whose class it is is told by the network
    assert (drawn(one, 0) - drawn(one, 1)).abs().mean() > 1e-3


@pytest.mark.parametrize("kind", [painter, dcgan])
def test_an_average_is_the_mean_and_shared(kind) -> None:  # type: ignore[no-untyped-def]
    given = [kind(seed) for seed in (0, 1, 2)]
    before = [{k: v.clone() for k, v in g.state_dict().items()} for g in given]
    mixed = averaged(given)
    for name in shared(given[0]):
        mean = shared(mixed[0])[name]
        torch.testing.assert_close(mean.data, torch.stack([state[name] for state in before]).mean(0))
        assert all(shared(g)[name] is mean for g in mixed) and mean.requires_grad
    tables = [name for name, m in mixed[0].named_modules() if isinstance(m, nn.Embedding)]
    for state, g in zip(before, mixed, strict=True):
        assert tables and all(torch.equal(g.get_submodule(t).weight, state[f"{t}.weight"]) for t in tables)
    assert all(
        torch.equal(state[k], v) for state, g in zip(before, given, strict=True) for k, v in g.state_dict().items()
    )


def test_one_begins_as_the_root_with_its_own_card_and_classes() -> None:
    root, same, more = painter(0), painter(1), painter(2, 7)
    same.drawn = torch.tensor([1, 3])
    like = begun(same, root)
    assert all(torch.equal(p, q) for p, q in zip(like.parameters(), root.parameters(), strict=True))
    assert like.drawn.tolist() == [1, 3] and like is not root
    assert all(p is not q for p, q in zip(like.parameters(), root.parameters(), strict=True))
    other = begun(more, root)
    assert all(torch.equal(p, shared(root)[name]) for name, p in shared(other).items())
    assert other.classes == 7 and len(other.norms[0].scale.weight) == 7  # type: ignore[union-attr,arg-type]
    assert described(other) == described(root) == "a painter (width 8) of 3x16x16 rgb images"


def test_what_cannot_be_mixed_is_a_sentence() -> None:
    with pytest.raises(SourceError, match="its generator is a BigGAN; dcgan and painter can be mixed"):
        architecture(BigGAN(CARD, 16, 8, 5))
    with pytest.raises(SourceError, match="its generator knows no classes"):
        architecture(painter(0, None))
