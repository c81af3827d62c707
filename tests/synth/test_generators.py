"""Generators draw the right shape, within what a pixel can be, for any size."""

import pytest
import torch
from torch import nn

from zaq.config.card import Card
from zaq.config.normalizations import NORMALIZATIONS
from zaq.synth.generators import DCGAN


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 7, 5), (3, 96, 50), (4, 16, 16)])
@pytest.mark.parametrize("classes", [None, 10])
def test_shape_and_range(shape: tuple[int, ...], classes: int | None) -> None:
    card = Card(input=shape, mean=(0.4,) * shape[0], std=(0.2,) * shape[0])
    generator = DCGAN(card, latent=16, width=16, classes=classes)
    images, labels = generator.sample(6)
    assert images.shape == (6, *shape) and (labels is None) == (classes is None)
    low, high = card.bounds()
    assert (images >= low).all() and (images <= high).all()
    assert images.std() > 0.1 * (high - low).mean()
    images.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in generator.parameters())


@pytest.mark.parametrize("side", [32, 224, 30])
def test_gdfqs_generator(side: int) -> None:
    """A quarter of a side out of the linear layer, 128 -> 128 -> 64 -> 3, eps 0.8 in the body, Tanh before the last
    batch norm.
    """
    card = Card(input=(3, side, side), mean=(0.4,) * 3, std=(0.2,) * 3)
    generator = DCGAN(card, 100, 128, 10, doublings=2, eps=0.8, tanh=True)
    assert generator.base == (-(-side // 4), -(-side // 4), 128)
    assert [type(m).__name__ for m in generator.body][-3:] == ["Conv2d", "Tanh", "BatchNorm2d"]
    convolutions = [(m.in_channels, m.out_channels) for m in generator.body if isinstance(m, nn.Conv2d)]
    assert convolutions == [(128, 128), (128, 64), (64, 3)]
    norms = [m for m in generator.body if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in norms] == [1e-5, 0.8, 0.8, 1e-5] and [m.affine for m in norms] == [True, True, True, False]
    assert generator.sample(2)[0].shape == (2, 3, side, side)


def test_the_label_multiplies_the_latent() -> None:
    generator = DCGAN(Card(input=(3, 16, 16)), 8, 16, 5, doublings=2, tanh=True).eval()
    z, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])
    assert generator.embed is not None
    expected = generator(z * generator.embed(labels))
    torch.testing.assert_close(generator(z, labels), expected)
    assert not torch.allclose(generator(z, labels.flip(0)), expected)


@pytest.mark.parametrize("name", [*NORMALIZATIONS, "none"])
def test_normalised_images_have_mean_0_and_variance_1_where_a_cards_std_is_the_datas(name: str) -> None:
    torch.manual_seed(0)
    mean, std = NORMALIZATIONS.get(name, (None, None))
    card = Card(input=(3, 32, 32), mean=mean, std=std)
    generator, (low, high) = DCGAN(card, 16, 16, 10, doublings=2, eps=0.8, tanh=True), card.bounds()
    normed: list[torch.Tensor] = []
    generator.body[-1].register_forward_hook(lambda module, inputs, output: normed.append(output.detach()))
    drawn = generator.sample(64)[0].detach()
    assert normed[0].mean((0, 2, 3)).abs().max() < 1e-3 and (normed[0].var((0, 2, 3)) - 1).abs().max() < 1e-2
    if name in ("imagenet", "cifar10", "cifar100", "none"):
        assert torch.equal(drawn, normed[0].maximum(low).minimum(high))
    else:  # no data's: they have the pixels of photographs
        pixels = (drawn - low) / (high - low)
        torch.testing.assert_close(pixels, (0.45 + 0.25 * normed[0]).clamp(0, 1), atol=1e-5, rtol=0)
