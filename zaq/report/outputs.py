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

from zaq.engine.state import State
from zaq.errors import RunError
from zaq.ir.nodes import activations, output_nodes

__all__ = ["Output", "outputs_of", "require_a_student", "sqnr"]

NOTHING = 1.0  # dB: an answer of zeros has 0
ENOUGH_BITS = 6  # from which on a student of less than that is a fault, and not what so few bits can do
STILL = 0.02  # of an output's greatest value: a teacher whose answers differ by less may round to a single one


@dataclass(frozen=True)
class Output:
    """One output of the student beside the teacher's. sqnr: in dB, of floats; equal: the share of equal elements.

    stuck: whether it is the same for all samples, and the teacher's is not.
    """

    number: int
    sqnr: float | None
    equal: float
    stuck: bool


@torch.no_grad()
def outputs_of(state: State) -> list[Output]:
    """The outputs that depend on the image, compared on the samples of a state that has some."""
    assert state.samples is not None
    parts = state.samples.split(state.task.batch)
    teacher, student = (
        [torch.cat(list(o)) for o in zip(*(pytree.tree_leaves(m(x)) for x in parts), strict=True)]
        for m in (state.task.teacher, state.student.module)
    )
    live = set(activations(state.task.teacher))
    nodes = output_nodes(state.task.teacher)
    return [
        Output(i, sqnr(p, q) if p.is_floating_point() else None, float((p == q).float().mean()), _stuck(p, q))
        for i, (node, p, q) in enumerate(zip(nodes, teacher, student, strict=True))
        if node in live
    ]


def sqnr(signal: Tensor, quantized: Tensor) -> float:
    """Signal to quantization noise, 10 log10(E[x^2] / E[(x - x^)^2]), in dB; 200 where they are equal."""
    here = signal.isfinite()  # what is masked with infinity has no power; the other must have masked it, too
    signal, quantized = torch.where(here, signal, 0), torch.where(here | (signal != quantized), quantized, 0)
    noise = float((signal - quantized).pow(2).mean())
    power = float(signal.pow(2).mean())
    if not math.isfinite(noise):
        return -200.0
    return (
        round(10 * float(torch.log10(torch.tensor(power / noise))), 2) if noise > 1e-20 * max(power, 1e-20) else 200.0
    )


def require_a_student(report: dict[str, Any], where: str) -> None:
    """Raise RunError for a report whose student answers nothing, of the output that is worst; `where`: its file."""
    qconfig = report["options"]["qconfig"]
    bits = min(qconfig["weight_bits"], qconfig["act_bits"])
    found = [Output(**o) for o in report["agreement"].get("each", [])]
    stuck = next((o for o in found if o.stuck), None)
    worst = min((o for o in found if o.sqnr is not None), key=lambda o: o.sqnr or 0.0, default=None)
    if stuck:
        fault = f"output {stuck.number} never changes, whatever the image, and the float model's does"
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
