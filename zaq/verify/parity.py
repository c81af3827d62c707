"""Is the file the student? Both are run on the same samples and compared, step by step of the output's grid."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from zaq.config.memory import at_once
from zaq.export.ends import behind_casts
from zaq.export.session import batch_of, run_session, session, taken
from zaq.ir.move import device_of
from zaq.ir.sizes import TRIED, other_sizes
from zaq.quant.alike import channel_dim, spreads
from zaq.sources.frame import network_of
from zaq.verify.kernels import Kernels, kernels

__all__ = ["BATCH", "Parity", "compare", "compare_sizes"]

BATCH, TOGETHER = 50, 2**20  # samples, and values of samples, that are run at once
FEW = 16  # samples at another size


@dataclass(frozen=True)
class Parity:
    """How the ONNX file in onnxruntime differs from the checkpoint in torch.

    Differences count in steps: of an output's grid where it is quantized, else of a 256th of its range. `step`: the
    largest of the outputs'. Labels, indices and masks are equal or not. `worst`: the channel whose mean difference is
    greatest beside its own range, and what part of that it is.
    """

    samples: int
    largest_difference: float
    share_equal: float
    share_one_step: float
    share_worse: float
    step: float
    sqnr: float | None  # dB of signal to difference, of the output that differs most; 200: equal; None: NaN or infinite
    top1_agreement: float | None  # of the outputs' largest entries; None where there are no classes
    worst: tuple[str, float] = ("", 0.0)
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
    run, there = session(path), device_of(student)
    expected: list[list[Tensor]] = []
    found: list[list[Tensor]] = []
    if isinstance(samples, Tensor):
        samples = samples.split(batch_of(run) or min(BATCH, at_once(TOGETHER, samples.shape[1:])))
    for batch in samples:
        batch = taken(run, batch)
        found.append([torch.from_numpy(t) for t in run_session(run, batch)])
        made = zip(pytree.tree_leaves(student(batch.to(there))), found[-1], strict=True)
        expected.append([t.to("cpu", like.dtype) for t, like in made])
    ours, theirs = ([torch.cat(list(t)) for t in zip(*parts, strict=True)] for parts in (expected, found))
    grids = _output_steps(path) if path.suffix == ".onnx" else [None] * len(ours)
    apart, steps, floats = list[Tensor](), [1e-12], dict[int, tuple[Tensor, Tensor]]()
    for i, (a, b, grid) in enumerate(zip(ours, theirs, grids, strict=True)):
        if not a.is_floating_point():  # labels, indices and masks
            apart.append(torch.where(a == b, 0.0, torch.inf).double().flatten())
            continue
        masked = a.isinf() & (a == b)  # by infinity, in both
        floats[i] = torch.where(masked, 0, a).double(), torch.where(masked, 0, b).double()
        steps.append(max(grid or float(floats[i][0].max() - floats[i][0].min()) / 256, 1e-12))
        apart.append(((floats[i][0] - floats[i][1]).abs() / steps[-1]).flatten())
    steps_apart, pairs = torch.cat(apart), list(floats.values())
    classes = len(ours) == 1 and ours[0].dim() == 2
    ran = kernels(path) if path.suffix == ".onnx" else Kernels({}, [])  # other formats hold kernels chosen before
    return Parity(
        samples=len(ours[0]),
        largest_difference=max((float((a - b).abs().max()) for a, b in pairs), default=0.0),
        share_equal=_share(steps_apart < 0.01),
        share_one_step=_share((steps_apart >= 0.01) & (steps_apart < 1.01)),
        share_worse=_share(~(steps_apart < 1.01)),  # what is no number is in no step of anything
        step=max(steps),
        sqnr=_decibels(pairs),
        top1_agreement=_same_class(ours[0], theirs[0]) if classes and pairs else None,
        worst=max((_worst(i, a, b) for i, (a, b) in floats.items()), key=lambda w: w[1], default=("", 0.0)),
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
            student(images.to(device_of(student)))
        except RuntimeError:  # not every network takes every size
            continue
        found["x".join(map(str, size))] = compare(path, student, images)
        if len(found) == TRIED:
            break
    return found


def _decibels(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """10 log10 of signal to difference, the least of all outputs; see `Parity.sqnr`."""
    powers = torch.tensor([[float(a.square().sum()), float((a - b).square().sum())] for a, b in pairs]).double()
    if not bool(powers.isfinite().all()):
        return None
    ratios = [10 * math.log10((signal + 1e-30) / (difference + 1e-50)) for signal, difference in powers.tolist()]
    return max(min([200.0, *ratios]), -200.0)


def _same_class(ours: Tensor, theirs: Tensor) -> float:
    """The share of samples (N, K) with the same greatest entry; NaN is the greatest to argmax, and no class."""
    finite = ours.isfinite().all(1) & theirs.isfinite().all(1)
    return _share((ours.argmax(1) == theirs.argmax(1)) & finite)


def _share(of: Tensor) -> float:
    return float(of.double().mean())


def _worst(number: int, ours: Tensor, theirs: Tensor) -> tuple[str, float]:
    """The channel of an output that differs most on average, beside its own range."""
    a, b = (x.movedim(channel_dim(ours), 0).flatten(1) for x in (ours, theirs))
    parts = (a - b).abs().mean(1) / spreads(a.amax(1) - a.amin(1))
    return f"channel {int(parts.argmax())} of output {number}", float(parts.max())


def _output_steps(path: Path) -> list[float | None]:
    """Of each output the scale of the last DequantizeLinear, if it comes straight from one; None for a float output."""
    graph = onnx.load_model_from_string(network_of(path.read_bytes())).graph
    makers = {o: n for n in graph.node for o in n.output}
    tensors = {t.name: t for t in graph.initializer}
    return [_step_of(makers.get(name), tensors) for name in behind_casts(graph)]


def _step_of(maker: onnx.NodeProto | None, tensors: dict[str, onnx.TensorProto]) -> float | None:
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in tensors:
        return None
    scale = float(onnx.numpy_helper.to_array(tensors[maker.input[1]]).max())
    return scale if math.isfinite(scale) else None
