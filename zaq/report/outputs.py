"""Whether a student is one at all: each of its outputs held against the float network's, over samples.

Outputs in floating point by signal over noise; labels, indices and masks by how many of them are the same. A constant
that the network hands through has nothing to compare. Few bits may do so badly that nothing of a signal is left (plain
rounding of a ResNet-20 at w3a3: -1.4 dB), and a benchmark wants such numbers; from six bits on it is a fault.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zaq.config.memory import at_once
from zaq.engine.state import NOT_FINITE, State, broken_images
from zaq.errors import RunError, SourceError, TrainingError
from zaq.ir.nodes import activations, output_nodes
from zaq.quant.alike import channel_dim, spreads

__all__ = ["Output", "outputs_of", "require_a_student", "sqnr"]

NOTHING = 1.0  # dB: an answer of zeros has 0
ENOUGH_BITS = 6  # from which on a student of less than that is a fault, and not what so few bits can do
TOGETHER = 2**20  # values that are looked at at once
STILL = 0.02  # of an output's greatest value: a teacher whose answers differ by less may round to a single one


@dataclass(frozen=True)
class Output:
    """One output of the student beside the teacher's.

    sqnr: in dB, of floats; equal: the share of equal elements; stuck: whether it is the same for all samples, and the
    teacher's is not. Of floats, each channel along `dim` against its own spread: their number, the worst one, and in dB
    the worst and the middle one.
    """

    number: int
    sqnr: float | None
    equal: float
    stuck: bool
    channels: int = 0
    dim: int | None = None
    worst: int | None = None
    worst_sqnr: float | None = None
    median_sqnr: float | None = None


@torch.no_grad()
def outputs_of(state: State) -> list[Output]:
    """The outputs that depend on the image, compared on the samples of a state that has some.

    Raises SourceError where the teacher's are not finite, TrainingError where the student's are not.
    """
    assert state.samples is not None
    count, parts = len(state.samples), state.samples.split(state.task.batch)
    teacher, student = (
        [torch.cat(list(o)) for o in zip(*(pytree.tree_leaves(m(x)) for x in parts), strict=True)]
        for m in (state.task.teacher, state.student.module)
    )
    nodes, live = output_nodes(state.task.teacher), set(activations(state.task.teacher))
    of_the_image = [i for i, node in enumerate(nodes) if node in live]
    if broken := broken_images([[teacher[i] for i in of_the_image]]):
        raise SourceError(NOT_FINITE.format(broken, count))
    if broken := broken_images([[student[i] for i in of_the_image]]):
        raise TrainingError(f"the quantized model's outputs are NaN or infinite for {broken} of {count} samples.")
    return [_output(i, teacher[i], student[i]) for i in of_the_image]


def _output(number: int, p: Tensor, q: Tensor) -> Output:
    equal, stuck = float((p == q).float().mean()), _stuck(p, q)
    if not p.is_floating_point():
        return Output(number, None, equal, stuck)
    p, q = _unmasked(p, q)
    dim = channel_dim(p)
    rows, others = (x.movedim(dim, 0).flatten(1) for x in (p, q))
    power = spreads(rows.std(1, correction=0)).square()
    decibels = (10 * (power / (rows - others).square().mean(1).clamp(min=1e-20 * power)).log10()).clamp(max=200)
    worst, middle = int(decibels.argmin()), round(float(decibels.median()), 2)
    return Output(number, sqnr(p, q), equal, stuck, len(decibels), dim, worst, round(float(decibels[worst]), 2), middle)


def _unmasked(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Both in double, 0 where both are masked by infinity: that has no power."""
    masked = p.isinf() & (p == q)
    return torch.where(masked, 0, p).double(), torch.where(masked, 0, q).double()


def sqnr(signal: Tensor, quantized: Tensor) -> float | None:
    """Signal to quantization noise, 10 log10(E[x^2] / E[(x - x^)^2]), in dB and in double; 200 where they are equal.
    None where either is not finite: of what is no number nothing can be said, least of all that it is right. What both
    mask by infinity does not count.
    """
    noise = power = 0.0
    rows = at_once(TOGETHER, signal.shape[1:])  # in double, and several times over
    for p, q in zip(torch.atleast_1d(signal).split(rows), torch.atleast_1d(quantized).split(rows), strict=True):
        p, q = _unmasked(p, q)
        noise += float((p - q).square().sum()) / signal.numel()
        power += float(p.square().sum()) / signal.numel()
    if not (math.isfinite(noise) and math.isfinite(power)):
        return None
    if noise <= 1e-20 * max(power, 1e-20):
        return 200.0
    return round(max(10 * math.log10(max(power, 1e-300) / noise), -200.0), 2)


def require_a_student(report: dict[str, Any], where: str) -> None:
    """Raise RunError for a report whose student answers nothing, of the output that is worst; `where`: its file."""
    qconfig = report["options"]["qconfig"]
    bits = min(qconfig["weight_bits"], qconfig["act_bits"])
    found = [Output(**o) for o in report["agreement"].get("outputs", [])]
    stuck = next((o for o in found if o.stuck), None)
    lost = next((o for o in found if o.dim is not None and o.sqnr is None), None)
    worst = min((o for o in found if o.sqnr is not None), key=lambda o: o.sqnr or 0.0, default=None)
    if stuck:
        fault = f"output {stuck.number} never changes, whatever the image, and the float model's does"
    elif lost:
        fault = f"output {lost.number} is infinite where the float model's is not, or the other way round"
    elif worst and (worst.sqnr or 0.0) < NOTHING and bits >= ENOUGH_BITS:
        fault = f"output {worst.number} is as far from the float model's as zeros would be ({worst.sqnr:.1f} dB)"
    else:
        return
    raise RunError(f"{where} is written, and is of no use: {fault}. Try more bits, another --method or more --effort.")


def _stuck(p: Tensor, q: Tensor) -> bool:
    if len(p) < 2 or bool((q != q[:1]).any()):
        return False
    if not p.is_floating_point():
        return float((p != q).float().mean()) > 0.1
    p = torch.where(p.isfinite(), p, 0)
    return float((p - p.mean(0)).pow(2).mean().sqrt()) > STILL * float(p.abs().max())
