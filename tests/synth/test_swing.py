"""Swing convolutions move what a strided convolution reads, and nothing else."""

import torch
from zoo import images, traced

from zaq.synth.swing import shifted, with_swing


def test_strided_convolutions_swing() -> None:
    gm = traced("residual")
    swinging = with_swing(gm)
    moved = [n for n in swinging.graph.nodes if getattr(n.target, "__name__", "") == "_shifted"]
    assert len(moved) == 1 and next(iter(moved[0].users)).args[3] == [2, 2]
    torch.manual_seed(0)
    x = images(4)
    outputs = [swinging(x) for _ in range(30)]
    plain = gm(x)
    assert any(torch.equal(o, plain) for o in outputs) and not all(torch.equal(o, plain) for o in outputs)
    assert len({float(o.detach().sum()) for o in outputs}) in range(5, 10)


def test_nothing_to_swing() -> None:
    gm = traced("concat")
    assert torch.equal(with_swing(gm)(images(3)), gm(images(3)))


def test_shifted_moves_pixels_and_makes_none() -> None:
    x = images(2)
    torch.manual_seed(0)
    seen = [shifted(x, 2) for _ in range(20)]
    assert all(torch.equal(y.flatten().sort().values, x.flatten().sort().values) for y in seen)
    assert len({float(y[0, 0, 0, 0]) for y in seen}) > 5
