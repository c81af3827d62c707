"""Photographs as a canvas: each in its turn, mirrored when they begin again."""

import torch
from zoo import CARD, SHAPE

from zaq.engine.snapshot import pack, unpack
from zaq.synth.adapter import Adapter

PIXELS = torch.randint(256, (10, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def still() -> Adapter:
    """An adapter that paints nothing."""
    adapter = Adapter(CARD, 8, PIXELS).eval()
    torch.nn.init.zeros_(adapter.last.weight)
    torch.nn.init.zeros_(adapter.last.bias)  # type: ignore[arg-type]
    return adapter


def test_each_is_moved_once_then_mirrored() -> None:
    images, expected = still().moved(torch.arange(25)), CARD.normalised(PIXELS)
    torch.testing.assert_close(images[:10], expected)
    torch.testing.assert_close(images[10:20], expected.flip(3))
    torch.testing.assert_close(images[20:], expected[:5])


def test_at_random_half_are_mirrored() -> None:
    torch.manual_seed(0)
    (canvas, labels), expected = still().starts(400), CARD.normalised(PIXELS)
    assert labels is None
    there = [(canvas[:, None] == of[None]).flatten(2).all(2) for of in (expected, expected.flip(3))]
    assert (there[0] | there[1]).any(1).all() and (there[0] | there[1]).any(0).all()
    assert 0.4 < float(there[1].any(1).float().mean()) < 0.6


def test_a_snapshot_has_the_photographs_and_its_state_has_not() -> None:
    tensors: dict[str, torch.Tensor] = {}
    again = unpack(pack(still(), tensors), tensors)
    assert torch.equal(again.pixels, PIXELS) and "pixels" not in again.state_dict()
    torch.testing.assert_close(again.eval().moved(torch.arange(3)), CARD.normalised(PIXELS[:3]))
