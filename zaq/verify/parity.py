"""Is the file the student? Both are run on the same samples and compared, step by step of the output's grid."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zaq.export.session import run_session, session
from zaq.quant.alike import channel_dim, spreads
from zaq.verify.kernels import Kernels, kernels

__all__ = ["BATCH", "Parity", "compare"]

BATCH = 50


@dataclass(frozen=True)
class Parity:
    """How the ONNX file in onnxruntime differs from the checkpoint in torch.

    Differences count in steps: of an output's grid where it is quantized, else of a 256th of its range. `step`: the
    largest of the outputs'. `worst`: the channel whose mean difference is greatest beside its own range, and what part
    of that it is.
    """

    samples: int
    largest_difference: float
    share_equal: float
    share_one_step: float
    share_worse: float
    step: float
    top1_agreement: float | None  # of the outputs' largest entries; None where there are no classes
    worst: tuple[str, float] = ("", 0.0)
    kernels: dict[str, int] = field(default_factory=dict)
    float_kernels: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        top1 = "" if self.top1_agreement is None else f"; top-1 agrees on {100 * self.top1_agreement:.2f} %"
        name, part = self.worst
        worst = f"; worst {name}, {100 * part:.2g} % of its range off on average" if part else ""
        return (
            f"{self.samples} samples: largest difference {self.largest_difference:.3g}; {100 * self.share_equal:.2f} "
            "% of "
            f"elements equal, {100 * self.share_one_step:.2f} % off by one step ({self.step:.3g}), "
            f"{100 * self.share_worse:.2f} % by more{worst}{top1}"
        )


@torch.no_grad()
def compare(path: Path, student: nn.Module, samples: Tensor | Iterable[Tensor]) -> Parity:
    """Run `samples` (N, C, H, W), or batches of them, through the file and through the student."""
    run = session(path)
    found: list[list[Tensor]] = []
    expected: list[list[Tensor]] = []
    for batch in samples.split(BATCH) if isinstance(samples, Tensor) else samples:
        expected.append(list(pytree.tree_leaves(student(batch))))
        found.append([torch.from_numpy(t) for t in run_session(run, batch)])
    ours, theirs = ([torch.cat(list(t)).float() for t in zip(*parts, strict=True)] for parts in (expected, found))
    grids = _output_steps(path) if path.suffix == ".onnx" else [None] * len(ours)
    steps = [max(grid or float(a.max() - a.min()) / 256, 1e-12) for a, grid in zip(ours, grids, strict=True)]
    apart = torch.cat([((a - b).abs() / s).flatten() for a, b, s in zip(ours, theirs, steps, strict=True)])
    classes = len(ours) == 1 and ours[0].dim() == 2
    ran = kernels(path) if path.suffix == ".onnx" else Kernels({}, [])  # other formats hold kernels chosen before
    return Parity(
        samples=len(ours[0]),
        largest_difference=max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)),
        share_equal=_share(apart < 0.01),
        share_one_step=_share((apart >= 0.01) & (apart < 1.01)),
        share_worse=_share(apart >= 1.01),
        step=max(steps),
        top1_agreement=_share(ours[0].argmax(1) == theirs[0].argmax(1)) if classes else None,
        worst=max((_worst(i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))), key=lambda w: w[1]),
        kernels=ran.counts,
        float_kernels=[str(n) for n in ran.in_float],
    )


def _share(of: Tensor) -> float:
    return float(of.double().mean())


def _worst(number: int, ours: Tensor, theirs: Tensor) -> tuple[str, float]:
    """The channel of an output that differs most on average, beside its own range."""
    a, b = (x.movedim(channel_dim(ours), 0).flatten(1).double() for x in (ours, theirs))
    parts = (a - b).abs().mean(1) / spreads(a.amax(1) - a.amin(1))
    return f"channel {int(parts.argmax())} of output {number}", float(parts.max())


def _output_steps(path: Path) -> list[float | None]:
    """Of each output the scale of the last DequantizeLinear, if it comes straight from one; None for a float output."""
    graph = onnx.load(path).graph
    makers = {o: n for n in graph.node for o in n.output}
    tensors = {t.name: t for t in graph.initializer}
    return [_step_of(makers.get(output.name), tensors) for output in graph.output]


def _step_of(maker: onnx.NodeProto | None, tensors: dict[str, onnx.TensorProto]) -> float | None:
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in tensors:
        return None
    scale = float(onnx.numpy_helper.to_array(tensors[maker.input[1]]).max())
    return scale if math.isfinite(scale) else None
