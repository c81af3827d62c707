"""Is the file the student? Both are run on the same samples and compared, step by step of the output's grid."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from zaq.export.ends import behind_casts
from zaq.export.session import batch_of, run_session, session, taken
from zaq.ir.sizes import TRIED, other_sizes
from zaq.verify.kernels import Kernels, kernels

__all__ = ["BATCH", "Parity", "compare", "compare_sizes"]

BATCH = 50
FEW = 16  # samples at another size


@dataclass(frozen=True)
class Parity:
    """How the ONNX file in onnxruntime differs from the checkpoint in torch.

    Differences count in steps: of the output's grid where the output is quantized, else of a 256th of its range.
    """

    samples: int
    largest_difference: float
    share_equal: float
    share_one_step: float
    share_worse: float
    step: float
    top1_agreement: float | None  # of the outputs' largest entries; None where there are no classes
    kernels: dict[str, int] = field(default_factory=dict)
    float_kernels: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        top1 = "" if self.top1_agreement is None else f"; top-1 agrees on {100 * self.top1_agreement:.2f} %"
        return (
            f"{self.samples} samples: largest difference {self.largest_difference:.3g}; {100 * self.share_equal:.2f} "
            "% of "
            f"elements equal, {100 * self.share_one_step:.2f} % off by one step ({self.step:.3g}), "
            f"{100 * self.share_worse:.2f} % by more{top1}"
        )


@torch.no_grad()
def compare(path: Path, student: nn.Module, samples: Tensor | Iterable[Tensor]) -> Parity:
    """Run `samples` (N, C, H, W), or batches of them, through the file and through the student."""
    run = session(path)
    found: list[NDArray[np.float32]] = []
    expected: list[NDArray[np.float32]] = []
    same_top1: list[NDArray[np.bool_]] = []
    count = 0
    for batch in samples.split(batch_of(run) or BATCH) if isinstance(samples, Tensor) else samples:
        count += len(batch)
        batch = taken(run, batch)
        theirs = run_session(run, batch)
        ours = [t.numpy().astype(a.dtype) for t, a in zip(pytree.tree_leaves(student(batch)), theirs, strict=True)]
        expected.append(np.concatenate([a.ravel().astype(np.float32) for a in ours]))
        found.append(np.concatenate([a.ravel().astype(np.float32) for a in theirs]))
        if len(ours) == 1 and ours[0].ndim == 2:
            same_top1.append(ours[0].argmax(1) == theirs[0].argmax(1))
    a, b = np.concatenate(expected), np.concatenate(found)
    step = max((_output_step(path) if path.suffix == ".onnx" else None) or float(a.max() - a.min()) / 256, 1e-12)
    steps = np.abs(a - b) / step
    ran = kernels(path) if path.suffix == ".onnx" else Kernels({}, [])  # other formats hold kernels chosen before
    return Parity(
        samples=count,
        largest_difference=float(np.abs(a - b).max()),
        share_equal=float((steps < 0.01).mean()),
        share_one_step=float(((steps >= 0.01) & (steps < 1.01)).mean()),
        share_worse=float((steps >= 1.01).mean()),
        step=step,
        top1_agreement=float(np.concatenate(same_top1).mean()) if same_top1 else None,
        kernels=ran.counts,
        float_kernels=[str(n) for n in ran.in_float],
    )


@torch.no_grad()
def compare_sizes(path: Path, student: nn.Module, samples: Tensor, dims: tuple[int, ...]) -> dict[str, Parity]:
    """As `compare`, at other sizes of some samples than theirs where `dims` (2: height, 3: width) are open; by size."""
    found: dict[str, Parity] = {}
    for _, *size in other_sizes(tuple(samples.shape[1:]), dims) if dims else ():
        images = F.interpolate(samples[:FEW], size, mode="bilinear")
        try:
            student(images)
        except RuntimeError:  # not every network takes every size
            continue
        found["x".join(map(str, size))] = compare(path, student, images)
        if len(found) == TRIED:
            break
    return found


def _output_step(path: Path) -> float | None:
    """The scale of the last DequantizeLinear, if the output comes straight from one; None for a float output."""
    graph = onnx.load(path).graph
    makers = {o: n for n in graph.node for o in n.output}
    maker = makers.get(behind_casts(graph)[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    scale = next((onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == maker.input[1]), None)
    return None if scale is None or not math.isfinite(float(scale.max())) else float(scale.max())
