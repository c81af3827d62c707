"""Masks, indices, labels, constants and bytes go through a network as what they are; floats alone are rounded."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from zoo import quantized_like

import zaq
from zaq.api import Quantized
from zaq.methods.rtn import RTN
from zaq.verify.parity import compare


class Net(nn.Module):
    """Two convolutions and a head, used by `forward`."""

    def __init__(self, forward: Callable[["Net", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3), nn.Linear(8, 5)
        self.register_buffer("anchors", torch.rand(7, 4))
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def masked(s: Net, x: Tensor) -> Tensor:
    """By comparison, by logic on bits, by a choice, filled, and as numbers."""
    y = s.a(x)
    y = y * ((y > 0.1) & (y < 2) | ~(y > -0.5))
    y = torch.where(y > 0.3, y, y * 0.5).masked_fill(y < -1, 0.0)
    return s.b(y + (y > 0.1).float() * 0.1)  # type: ignore[no-any-return]


def masked_with_infinity(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.fc(y.masked_fill(y < 0, -math.inf).amax((2, 3)))  # type: ignore[no-any-return]


def indexed(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gathered by the order of another map; the best three with their places."""
    y = F.relu(s.a(x)).mean((2, 3))
    best: tuple[Tensor, Tensor] = torch.topk(s.fc(torch.gather(y, 1, x.flatten(1)[:, :8].argsort(1))), 3)
    return best


def counted(s: Net, x: Tensor) -> Tensor:
    """A position, and one hot, made of floats that are exact in both networks."""
    hot = F.one_hot((x[:, 0] > 0).long(), 8).permute(0, 3, 1, 2)
    return s.b(F.relu(s.a(x)) * hot + 0.01 * (x[:, :1] > 0).cumsum(2))  # type: ignore[no-any-return]


def nested(s: Net, x: Tensor) -> dict[str, Any]:
    """Outputs of every kind: floats, labels, masks, a constant of floats and one of numbers, one twice, a size."""
    y = s.b(F.relu(s.a(x)))
    more = (y.argmax(1), [y.sigmoid() > 0.5, s.anchors, torch.arange(4), y], None, x.shape[2])
    return {"map": y, "more": more}


X = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def run(path: Path, x: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.array(o)) for o in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


def quantized(net: nn.Module, x: Tensor, path: Path) -> Quantized:
    made = quantized_like(net.eval(), x[:1], "w8a8", RTN())
    made.export(path)
    return made


@pytest.mark.parametrize("forward", [masked, masked_with_infinity, indexed, counted, nested])
def test_the_file_computes_what_the_network_does(forward: Callable[..., Any], tmp_path: Path) -> None:
    made = quantized(net := Net(forward), X, tmp_path / "net.onnx")
    with torch.no_grad():
        wanted = [t for t in pytree.tree_leaves(net(X)) if isinstance(t, Tensor)]
    found = run(tmp_path / "net.onnx", X)
    assert [(a.dtype, a.shape) for a in wanted] == [(b.dtype, b.shape) for b in found]
    for a, b in zip(wanted, found, strict=True):
        near = (a - b).norm() < 0.09 * a.norm() if a.is_floating_point() else (a == b).float().mean() > 0.9  # 21 dB
        assert bool(near)
    quantizers = made.student.placement.activations
    kinds = {n.name: n.meta["val"].dtype for n in made.teacher.graph.nodes if n.name in quantizers}
    assert set(kinds.values()) == {torch.float32}
    parity = compare(tmp_path / "net.onnx", made.module, X)
    assert parity.share_equal > 0.98 and math.isfinite(parity.largest_difference)


def test_labels_that_differ_are_not_equal(tmp_path: Path) -> None:
    """A file of another network's labels."""
    made = quantized(Net(lambda s, x: s.b(F.relu(s.a(x))).argmax(1)), X, tmp_path / "net.onnx")
    other = zaq.quantize(Net(lambda s, x: s.b(F.relu(s.a(x + 1))).argmin(1)).eval(), X[:1], "w8a8", RTN())
    assert compare(tmp_path / "net.onnx", made.module, X).share_equal == 1
    apart = compare(tmp_path / "net.onnx", other.module, X)
    assert apart.share_worse > 0.5 and apart.share_equal + apart.share_worse == pytest.approx(1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.b(F.relu(s.a(x.float() / 255))),
        lambda s, x: s.b(F.relu(s.a((x.flip(1) / 255 - 0.5) / 0.25))),
        lambda s, x: s.b(F.relu(s.a((x.to(torch.float32) - 127.5) * 0.0078125))),
    ],
)
def test_bytes_are_0_to_255(forward: Callable[..., Any], tmp_path: Path) -> None:
    made = quantized(net := Net(forward), x := (X * 50 + 120).clamp(0, 255).to(torch.uint8), tmp_path / "net.onnx")
    with torch.no_grad():
        wanted = net(x)
    assert bool((wanted - made.module(x.float())).norm() < 0.05 * wanted.norm())
    low, high = made.card.bounds()
    assert float(low.min()) == 0 and float(high.max()) == pytest.approx(255)
    assert any("uint8: its pixels are taken to be 0 to 255" in note for note in made.report["notes"])


def test_bytes_that_wrap_are_refused() -> None:
    net = Net(lambda s, x: s.b(s.a((x + 200).float()))).eval()
    with pytest.raises(zaq.ZaqError, match=r"computes with the whole numbers of a uint8 image, .*x = x\.float\(\)"):
        zaq.quantize(net, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "w8a8", RTN())
