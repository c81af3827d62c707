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
from torch.utils import _pytree as pytree

from zaq.export.session import run_session, session
from zaq.verify.kernels import Kernels, kernels

__all__ = ["BATCH", "Parity", "compare"]

BATCH = 50


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
    sqnr: float | None  # dB of signal to difference, of the output that differs most; 200: equal; None: NaN or infinite
    top1_agreement: float | None  # of the outputs' largest entries; None where there are no classes
    kernels: dict[str, int] = field(default_factory=dict)
    float_kernels: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def agreement(self) -> float:
        """Percent of samples with the same class; of elements no more than a step apart, where there are no classes."""
        return 100 * (self.share_equal + self.share_one_step if self.top1_agreement is None else self.top1_agreement)

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
    powers: dict[
        int, tuple[float, float]
    ] = {}  # of each output: that of the checkpoint's values, that of the difference
    for batch in samples.split(BATCH) if isinstance(samples, Tensor) else samples:
        count += len(batch)
        ours = [t.numpy() for t in pytree.tree_leaves(student(batch))]
        theirs = run_session(run, batch)
        both = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(ours, theirs, strict=True)]
        for i, (a, b) in enumerate(both):
            signal, difference = powers.get(i, (0.0, 0.0))
            powers[i] = (signal + float((a * a).sum()), difference + float(((a - b) ** 2).sum()))
        expected.append(np.concatenate([a.ravel() for a in ours]))
        found.append(np.concatenate([a.ravel() for a in theirs]))
        if len(ours) == 1 and ours[0].ndim == 2:
            finite = np.isfinite(ours[0]).all(1) & np.isfinite(theirs[0]).all(1)  # NaN is the greatest, to argmax
            same_top1.append((ours[0].argmax(1) == theirs[0].argmax(1)) & finite)
    a, b = (np.concatenate(values).astype(np.float64) for values in (expected, found))
    step = max((_output_step(path) if path.suffix == ".onnx" else None) or float(a.max() - a.min()) / 256, 1e-12)
    steps = np.abs(a - b) / step
    equal, one = float((steps < 0.01).mean()), float(((steps >= 0.01) & (steps < 1.01)).mean())
    ran = kernels(path) if path.suffix == ".onnx" else Kernels({}, [])  # other formats hold kernels chosen before
    return Parity(
        samples=count,
        largest_difference=float(np.abs(a - b).max()),
        share_equal=equal,
        share_one_step=one,
        share_worse=float((~(steps < 1.01)).mean()),  # what is no number is in no step of anything
        step=step,
        sqnr=_decibels(list(powers.values())),
        top1_agreement=float(np.concatenate(same_top1).mean()) if same_top1 else None,
        kernels=ran.counts,
        float_kernels=[str(n) for n in ran.in_float],
    )


def _decibels(powers: list[tuple[float, float]]) -> float | None:
    """10 log10 of signal to difference, the least of all outputs; see `Parity.sqnr`."""
    if not np.isfinite(powers).all():
        return None
    ratios = [(signal + 1e-30) / (difference + 1e-50) for signal, difference in powers]
    return float(np.clip(10 * np.log10(min(ratios, default=1e20)), -200, 200))


def _output_step(path: Path) -> float | None:
    """The scale of the last DequantizeLinear, if the output comes straight from one; None for a float output."""
    graph = onnx.load(path).graph
    makers = {o: n for n in graph.node for o in n.output}
    maker = makers.get(graph.output[0].name)
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    scale = next((onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == maker.input[1]), None)
    return None if scale is None or not math.isfinite(float(scale.max())) else float(scale.max())
