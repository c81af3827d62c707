"""How often a quantized classifier will answer as its float network does on real images, estimated without one.

What is known without data is put into a line, and its logistic is the share of equal answers. `estimate.json` holds the
line and how far it was off on networks that it was not fitted on; benchmarks/estimate.py writes it, by images of
training sets. A case that is unlike all that it was fitted on gets a sentence, and no figure.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.compute.processes import world
from zaq.config.bits import QConfig
from zaq.config.bounds import plain_json
from zaq.config.card import Card
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import ZaqError
from zaq.ir.taps import with_taps
from zaq.methods.rtn import RTN
from zaq.passes.fold import fold
from zaq.quant.student import Student
from zaq.report.outputs import sqnr
from zaq.stages.synthesis import Draw, Synthesize
from zaq.synth.losses import relative_discrepancy

__all__ = [
    "CALIBRATION",
    "Estimate",
    "calibration",
    "estimates",
    "features_of",
    "predicted",
    "ruler",
    "spread",
    "transformed",
]

CALIBRATION = Path(__file__).with_name("estimate.json")
SAMPLES = 128  # of the ruler
STEPS = 12  # of its generator's training
HALF = 0.5 / SAMPLES  # half of one of the ruler's samples: no share that was counted is 0 or 1
LEAST = 1e-3  # (3 points) squared, about: no share is known better
SLACK = 0.05  # of a feature's range, by which a case may lie outside of it


@dataclass(frozen=True)
class Estimate:
    """The share of real images on which the answer is the float network's, and the ends of a 90 % interval."""

    agreement: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.agreement:.1f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


def ruler(teacher: GraphModule, card: Card) -> Tensor:
    """The samples (N, C, H, W) that students of a folded graph are held against: drawn by a generator of a short
    training, the same for every method, width and effort, so that figures can be compared.
    """
    state = State(Task(teacher, QConfig(8, 8), card))
    draws = Synthesize(name="held-out synthesis", steps=STEPS, held_out=True)
    run_stages([draws, Draw(name="held-out draw", count=SAMPLES, held_out=True)], state, Journal())
    assert state.samples is not None
    return state.samples


@torch.no_grad()
def features_of(teacher: GraphModule, student: GraphModule, drawn: Tensor, batch: int) -> dict[str, float]:
    """What student and teacher, both classifiers, differ by on samples (N, C, H, W), by name.

    `agreement`, the share of equal answers; `sqnr`, of the outputs, in dB; `loss`, the held-out loss; `noise`, what an
    answer's lead over the next one is changed by, in parts of the middle lead; `confidence`, the float network's mean
    probability of its answer.
    """
    networks = (with_taps(gm, []) for gm in (teacher, student))
    p, q = (torch.cat([network(x)[0][0] for x in drawn.split(batch)]) for network in networks)
    first = p.topk(2)
    lead, changed = (-y.gather(1, first.indices).diff().squeeze(1) for y in (p, q - p))
    return {
        "agreement": float((p.argmax(1) == q.argmax(1)).float().mean()),
        "sqnr": sqnr(p, q) or 0.0,
        "loss": float(relative_discrepancy([p], [q])),
        "noise": float(changed.square().mean().sqrt() / lead.median().clamp(min=1e-6)),
        "confidence": float(p.softmax(1).amax(1).mean()),
    }


def estimates(graph: GraphModule, state: State) -> dict[str, Any]:
    """The estimate for a state that a method left of a graph, and for plain rounding at the same bits, for the report:
    `run` and `rounding`, each an `Estimate`'s fields or None; `why`, where there is no figure; `sentence`.
    """
    why, found = _unlike(state.task), list[Estimate | None]([None, None])
    if not why:
        try:
            teacher = fold(graph)[0]
            samples = ruler(teacher, state.task.card)
            students = (state.student, _rounded(teacher, state.task))
            features = [features_of(teacher, student.module, samples, state.task.batch) for student in students]
            why, found = _outside(features[0]), [predicted(one) for one in features]
        except ZaqError as error:  # the run itself is well
            why = f"there is nothing to hold it against: {error}"
    told = {name: one and dataclasses.asdict(one) for name, one in zip(("run", "rounding"), found, strict=True)}
    return told | {"why": why, "sentence": _sentence(found[0], found[1], why)}


def predicted(features: dict[str, float]) -> Estimate | None:
    """The estimate for what `features_of` found; None for what is outside of all that it was fitted on."""
    known = calibration()
    if _outside(features):
        return None
    line = known["bias"] + sum(w * transformed(features)[name] for name, w in known["weights"].items())
    share = 1 / (1 + math.exp(-line))
    off = known["margin"] * spread(share)
    return Estimate(share, max(share - off, 0.0), min(share + off, 1.0))


def spread(share: float) -> float:
    """What an estimated share is off by, but for a factor: as the deviation of a binomial is, and never nothing."""
    return math.sqrt(share * (1 - share) + LEAST)


def transformed(features: dict[str, float]) -> dict[str, float]:
    """Features as they stand in the line: shares by their logits, ratios by their logarithms."""
    share = min(max(features["agreement"], HALF), 1 - HALF)
    return {
        "agreement": math.log(share / (1 - share)),
        "sqnr": features["sqnr"] / 10,
        "noise": -math.log(max(features["noise"], 1e-6)),
        "loss": -math.log(max(features["loss"], 1e-6)),
    }


@cache
def calibration() -> dict[str, Any]:
    """What benchmarks/estimate.py has written."""
    known: dict[str, Any] = plain_json(CALIBRATION.read_text())
    return known


def _unlike(task: Task) -> str:
    """Why no figure can be given for a network, whatever its student."""
    known, side = calibration(), max(task.card.input[-1:], default=0)
    if task.classes is None or task.classes < 2:
        return "it is calibrated for classifiers alone"
    if world() > 1:
        return "only a run of one process makes it"
    if not task.remembers:
        return "it is calibrated for networks whose batch norms are known"
    for what, value, (low, high) in (
        ("classes", task.classes, known["classes"]),
        ("pixels a side", side, known["side"]),
    ):
        if not low <= value <= high:
            known_of = f"{low} to {high}" if low < high else f"{low}"
            return f"it is calibrated for {known_of} {what}, and there are {value}"
    return ""


def _outside(features: dict[str, float]) -> str:
    """Why no figure can be given for a student: a feature that is unlike all that was measured."""
    for name, (low, high) in calibration()["ranges"].items():
        if not low - SLACK * (high - low) <= features[name] <= high + SLACK * (high - low):
            found = f"its {name} on drawn images is {features[name]:.3g}"
            return f"{found}, and {low:.3g} to {high:.3g} is what was measured"
    return ""


def _rounded(teacher: GraphModule, task: Task) -> Student:
    """The student of plain rounding at the same bits."""
    state = State(dataclasses.replace(task, teacher=teacher, effort="default", seed=0, search=RTN().search))
    run_stages(RTN().plan(state.task), state, Journal())
    return state.student


def _sentence(run: Estimate | None, rounding: Estimate | None, why: str) -> str:
    if run is None:
        return f"expected on real images like its training ones: no figure, as {why}"
    beside = f"; by plain rounding {rounding}" if rounding else ""
    return f"expected on real images like its training ones: the float network's answer on {run} of them{beside}"
