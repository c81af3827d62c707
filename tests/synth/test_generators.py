"""Generators draw the right shape, within what a pixel can be, for any size."""

import pytest
import torch

from zaq.config import Card
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
