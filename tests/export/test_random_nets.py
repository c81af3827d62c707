"""Random nets at random bits, exported in every form: the file, the student and the integer referee are the same.

ZAQ_RANDOM_NETS says how many (300 take half an hour). Seeds are fixed; `pytest -s` prints a line for each net.

Referee, file and student round the same numbers, the referee exactly, the other two in float32. They may part only
where such a number lies within float32's error of a tie between two steps (`Execution.ties`), and then by one step. So
in the first layer that parts, which reads what all agree on, every difference is one step at a tie: of `Shares`,
nothing is unexplained. What lies behind such a layer carries the difference on, and is not looked at. (Whole layers may
lie on ties: what a Hardtanh(-0.5, 2) has cut off at -0.5 is 51 steps of one grid and exactly 10.5 of another.)
"""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from numpy.typing import NDArray
from random_nets import Shape, nets, qconfigs
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from zoo import quantized_like

from zaq.config.bits import QConfig
from zaq.errors import BitsError
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.ir.capture import from_exported
from zaq.methods.rtn import RTN
from zaq.verify.kernels import kernels
from zaq.verify.layers import Layer, Shares, compare_layers

NETS = int(os.environ.get("ZAQ_RANDOM_NETS", "5"))
AT_ONCE = 5  # from the eleventh on hypothesis varies what it made before
SAMPLES = 8
NEAR = 1e-5  # of the largest output: float32 arithmetic in another order


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, math.ceil(NETS / AT_ONCE)))]
)
def test_random_nets(number: int, tmp_path: Path) -> None:
    calls = itertools.count()

    @seed(number)
    @settings(
        max_examples=AT_ONCE + bool(number),
        deadline=None,
        database=None,
        derandomize=False,  # the seed decides
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking would take an hour; a failure prints its net
    )
    @given(nets(), qconfigs())
    def check(made: tuple[nn.Module, Shape], qconfig: QConfig) -> None:
        if next(calls) or not number:  # hypothesis begins with the simplest net, whatever the seed
            print("\n" + compared(*made, qconfig, tmp_path))

    check()


class Found(nn.Module):
    """What random nets broke: padding with a value before a convolution, F.relu6, average pooling whose last windows
    reach over the edge, a slice that is padded, two heads that quantize the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Linear(8, n) for n in (4, 5))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.relu6(self.b(F.pad(self.a(x).relu(), (1, 1, 1, 1), value=0.5)))
        x = F.avg_pool2d(x, 3, 2, ceil_mode=True)
        x = self.c(x) + F.pad(x[:, 2:6, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return [head(x.mean((2, 3))) for head in self.heads]


@pytest.mark.parametrize("grids", [("per_channel", "symmetric"), ("per_channel_affine", "affine")])
def test_found_nets(grids: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    line = compared(Found(), (3, 16, 16), QConfig(8, 8, weights=grids[0], activations=grids[1]), tmp_path)
    assert "referee's floats: ['pad', 'avg_pool2d']" in line
    operations = {n.op_type for n in onnx.load(tmp_path / "qoperator.onnx").graph.node}
    assert ("Conv" in operations) == ("affine" in grids), operations  # 9 bits with their sign: in float


def compared(net: nn.Module, shape: Shape, qconfig: QConfig, folder: Path) -> str:
    """Check one net; what was found, as a line."""
    samples = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(1))
    quantized = quantized_like(net, samples[:1], qconfig, RTN(batches=1))
    program = program_of(quantized.module)
    outputs = files(program, qconfig, folder, samples)
    in_float = kernels(folder / "qdq.onnx").in_float
    for form in {"packed", "qoperator"} & set(outputs):
        for ours, theirs in zip(outputs["qdq"], outputs[form], strict=True):
            # Float kernels may be others, which add in another order; an integer has but one value.
            assert in_float or not qconfig.preset.merges or (ours == theirs).all(), f"{form} is not qdq"
            far = np.abs(ours - theirs).reshape(SAMPLES, -1).max(1) > NEAR * np.abs(ours).max()
            assert far.sum() <= 1, f"{form} is not qdq: {far.sum()} samples of {SAMPLES}"
    assert [a.shape for a in outputs["float"]] == [a.shape for a in outputs["qdq"]]
    graph = from_exported(program)
    layers, referee = compare_layers(folder / "qdq.onnx", graph, samples)
    sizes = [referee.integers[layer.node].numel() for layer in layers]
    parted = [first_parting([getattr(layer, who) for layer in layers], layers, sizes) for who in ("file", "checkpoint")]
    checkpoint, student = (_outputs(m, samples) for m in (graph, quantized.module))
    ties = any(
        bool(t.any()) for t in referee.ties.values()
    )  # the student's sums run in the order of another memory format
    pairs = (("file", outputs["qdq"], parted[0]), ("checkpoint", checkpoint, parted[1]), ("student", student, ties))
    for who, values, may_part in pairs:
        for found, exact in zip(values, referee.outputs, strict=True):
            difference = np.abs(found - exact.numpy()).max()
            assert may_part or difference <= NEAR * max(float(exact.abs().max()), 1e-3), (
                f"{who}: {difference} off behind equal layers"
            )
    given = (qconfig.first_last, qconfig.placement, qconfig.weights, qconfig.activations, qconfig.target)
    grids = " ".join(map(str, (qconfig, "first-last", *given)))
    reasons = ", ".join(sorted({f"{n.op}: {n.why.split(' ')[0] if 'nothing' in n.why else n.why}" for n in in_float}))
    line = f"NET {grids}: {len(layers)} layers, file {parted[0] or 'equal'}, student {parted[1] or 'equal'}"
    return f"{line}; referee's floats: {referee.in_float}; float kernels: {reasons or 'none'}"


@torch.no_grad()
def _outputs(module: nn.Module, samples: torch.Tensor) -> list[NDArray[np.float32]]:
    return [t.numpy() for t in pytree.tree_leaves(module(samples))]


def files(program: Any, qconfig: QConfig, folder: Path, samples: torch.Tensor) -> dict[str, list[NDArray[np.float32]]]:
    """The outputs of every form; `packed` only where there is something to pack."""
    translated, outputs = translate(program), {}
    for form in ("qdq", "packed", "qoperator", "float"):
        path = folder / f"{form}.onnx"
        try:
            path.write_bytes(in_form(translated, {}, form, target=qconfig.runtime))
        except BitsError as error:
            assert form == "packed" and "4 bits and fewer" in str(error)
            continue
        onnx.checker.check_model(
            onnx.load(path), full_check=form != "qoperator"
        )  # which has operators that ONNX does not know
        outputs[form] = run_session(session(path), samples)
        assert all(np.isfinite(a).all() for a in outputs[form])
    return outputs


def first_parting(shares: list[Shares], layers: list[Layer], sizes: list[int]) -> str:
    """The first layer that parts from the referee, after a check that it does so at ties; empty if none does."""
    for layer, share, size in zip(layers, shares, sizes, strict=True):
        if share.equal < 1:
            assert share.unexplained == 0, f"{100 * share.unexplained:.3f} % of {size} are no ties: {layer.sentence()}"
            return f"parts in {layer.name} ({100 * share.one_step:.3f} % of {size})"
    return ""
