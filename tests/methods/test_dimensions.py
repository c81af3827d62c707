"""Lines (N, C, L) and volumes (N, C, D, H, W) are quantized by what needs no picture, and refused by what does."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from zoo import quantized_like

from zaq.errors import BitsError
from zaq.methods import METHODS, Method
from zaq.methods.aciq import ACIQ
from zaq.methods.dfq import DFQ
from zaq.methods.rtn import RTN
from zaq.verify.parity import compare


def line() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 5, padding="same", groups=8), nn.ReLU(), nn.AvgPool1d(2), nn.ConvTranspose1d(8, 4, 2, 2),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU6(), nn.MaxPool3d(2),
        nn.Conv3d(8, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(4, 4, 2, 2),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "method"), [((3, 32), RTN()), ((3, 32), DFQ()), ((2, 8, 8, 8), ACIQ())])
def test_lines_and_volumes(shape: tuple[int, ...], method: Method, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = (line() if len(shape) == 2 else volume()), torch.randn(16, *shape)
    for _ in range(3):
        net(x)
    made = quantized_like(net.eval(), x[:1], "w8a8", method)
    made.export(path := tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    with torch.no_grad():
        wanted = net(x)
    assert bool((wanted - found).norm() < 0.1 * wanted.norm())  # 20 dB
    assert compare(path, made.module, x).share_worse < 0.02
    assert not [n for n in made.report["in_float"] if "conv" in n or "norm" in n or "max_pool" in n]


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"rtn", "dfq", "aciq", "ft"}))
def test_what_learns_from_pictures_refuses(name: str) -> None:
    with pytest.raises(BitsError, match=rf"--method {name} learns from images it draws, .* takes \(3, 32\)"):
        quantized_like(line().eval(), torch.zeros(1, 3, 32), "w8a8", METHODS[name]())
