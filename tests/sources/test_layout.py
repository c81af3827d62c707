"""A .pt2 whose images come as (N, H, W, C): read as (N, C, H, W), and its files take what it took."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from conftest import zaq_here
from torch import Tensor, nn

from zaq.errors import SourceError
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.ir.capture import quiet
from zaq.ir.nodes import open_sizes
from zaq.sources import load
from zaq.sources.frame import put_back

AUTO = torch.export.Dim.AUTO


class Turned(nn.Module):
    """What turns its images, and a map that it turns back, whose sizes are the image's."""

    def __init__(self, turn: Callable[[Tensor], Tensor], colours: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.turn = turn
        self.a, self.b = nn.Conv2d(colours, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(self.turn(x)).relu()).permute(0, 2, 3, 1)
        return y.reshape(x.size(0), x.size(1), x.size(2), 4)


def at_once(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def behind_a_mean(x: Tensor) -> Tensor:
    return ((x - torch.tensor([0.4, 0.5, 0.6])[: x.shape[-1]].to(x.dtype)) * 2).permute(0, 3, 1, 2)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": at_once,
    "negative": lambda x: x.permute(0, -1, 1, 2),
    "movedim": lambda x: x.movedim(-1, 1),
    "moveaxis": lambda x: x.moveaxis(3, 1),
    "transposed twice": lambda x: x.transpose(1, 3).transpose(2, 3),
    "bytes": lambda x: x.permute(0, 3, 1, 2).float() / 255,
    "floats of bytes": lambda x: x.float().permute(0, 3, 1, 2) / 255,
    "behind a mean": behind_a_mean,
}


def saved(net: nn.Module, example: Tensor, path: Path, **dims: object) -> str:
    shapes = {0: AUTO, **{{"h": 1, "w": 2}[k]: v for k, v in dims.items()}}
    with quiet():
        torch.export.save(torch.export.export(net.eval(), (example,), dynamic_shapes=(shapes,)), path)
    return str(path)


def require_alike(whole: bytes, net: nn.Module, x: Tensor, tolerance: float = 1e-4) -> None:
    run = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    (found,) = run.run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_turns_its_images(way: str, tmp_path: Path) -> None:
    net, kind = Turned(WAYS[way]), torch.uint8 if "bytes" in way else torch.float32
    source = load(saved(net, torch.zeros(2, 16, 20, 3, dtype=kind), tmp_path / "net.pt2"))
    assert source.card.input == (3, 16, 20)
    asked = [n for n in source.graph.graph.nodes if n.target is torch.ops.aten.permute.default]
    assert len(asked) == (3 if way == "behind a mean" else 1)
    assert bool(source.notes) == (way == "behind a mean") and all("counts as NHWC" in n for n in source.notes)
    x = (torch.rand(3, 16, 20, 3) * 255).to(kind)
    require_alike(put_back(in_form(translate(program_of(source.graph)), {}, "float"), source.frame), net, x, 1e-3)


def test_open_sizes_and_half_precision(tmp_path: Path) -> None:
    net = Turned(at_once).half()
    path = saved(net, torch.zeros(2, 16, 20, 3).half(), tmp_path / "net.pt2", h=AUTO, w=AUTO)
    source = load(path, {"input": (3, 24, 12)})
    assert open_sizes(source.graph) == (2, 3)
    whole = put_back(in_form(translate(program_of(source.graph)), {}, "float"), source.frame)
    for size in ((24, 12), (17, 33)):
        require_alike(whole, net, torch.randn(2, *size, 3).half(), 0.03)
    run = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    assert run.get_inputs()[0].shape == [*run.get_outputs()[0].shape[:3], 3] == ["batch", "height", "width", 3]


def test_a_layout_that_is_not_the_programs_is_refused(tmp_path: Path) -> None:
    path = saved(Turned(at_once), torch.zeros(2, 16, 20, 3), tmp_path / "net.pt2")
    assert load(path, layout="NHWC").card.input == (3, 16, 20)
    with pytest.raises(SourceError, match=r"--layout NCHW: its input 'x' is NHWC, for what reads it turns it"):
        load(path, layout="NCHW")
    path = saved(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 16, 16), tmp_path / "net.pt2")
    with pytest.raises(SourceError, match=r"--layout NHWC: .* is NCHW, for a convolution reads it as it is"):
        load(path, layout="NHWC")
    path = saved(nn.Conv1d(3, 4, 3), torch.zeros(2, 3, 16), tmp_path / "net.pt2")
    with pytest.raises(SourceError, match=r"--layout NHWC: .* has 3 dimensions, and images have 4"):
        load(path, layout="NHWC")


def test_a_run_of_a_layout_that_is_said(tmp_path: Path) -> None:
    """Two colours, behind a mean: neither graph nor sizes tell."""
    net = Turned(behind_a_mean, 2)
    path = saved(net, torch.zeros(2, 16, 20, 2), tmp_path / "net.pt2")
    out = tmp_path / "out"
    done = zaq_here("quantize", path, "--layout", "nhwc", "--bits", "w8a8", "--method", "rtn", "-o", out)
    assert done.exit_code == 0, done.stderr
    assert zaq_here("verify", out).exit_code == 0
    x = torch.randn(8, 16, 20, 2).clamp(-3, 3)
    require_alike((out / "model.onnx").read_bytes(), net, x, 0.1)
    done = zaq_here("inspect", "zoo:resnet20_cifar10", "--layout", "NHWC")
    assert done.exit_code == 2 and "--layout means nothing to this kind of source" in done.stderr
