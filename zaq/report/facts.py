"""What happened, as facts: the report of a run, from which JSON, tables and the page are made."""

import dataclasses
import platform
from typing import Any

import torch

from zaq.engine.journal import Journal
from zaq.engine.state import State
from zaq.engine.store import in_parts
from zaq.ir.taps import with_taps
from zaq.report.outputs import outputs_of, sqnr
from zaq.report.sensitivity import sensitivity
from zaq.report.tensors import tensors
from zaq.stats.mixed import packed_bytes
from zaq.synth.density import NEIGHBOURS, Alike, features, measure

__all__ = ["SCHEMA", "describe", "method_dict", "onnx_metadata"]

SCHEMA = 1
COMPARED = 512  # of the images learned on, with those held out
LOST = 3.0  # dB; less is more than half as much noise as signal


def method_dict(method: Any) -> dict[str, Any]:
    """A method's name and its constants."""
    constants = dataclasses.asdict(method) if dataclasses.is_dataclass(method) and not isinstance(method, type) else {}
    own = constants.pop("stage_constants", {})
    return {"name": method.name or type(method).__name__.lower(), **constants, **own}


def describe(state: State, journal: Journal, options: dict[str, Any], minutes: float) -> dict[str, Any]:
    """The report: options, stages, every tensor's grid, per-layer SQNR, notes."""
    from zaq import __version__

    agreement, covered = _agreement(state), _covered(state)
    if agreement.get("classes_seen") == 1 and (state.task.classes or 0) > 1:
        journal.notes.append(
            f"the float model takes all {agreement['samples']} samples for one and the same class: that the quantized "
            "one agrees says little"
        )
    return {
        "schema": SCHEMA,
        "zaq": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "options": options,
        "minutes": round(minutes, 2),
        "interrupted": journal.interrupted,
        "stages": [dataclasses.asdict(s) for s in journal.records],
        "notes": [*journal.notes, *_lost(agreement), *_uncovered(covered)],
        "in_float": state.student.placement.in_float,
        "layer_bits": state.task.qconfig.layer_bits,
        "frontier": state.frontier,
        "weight_bytes": packed_bytes(state.task.teacher, state.student.placement.weights),
        "tensors": tensors(state),
        "sensitivity": sensitivity(state, journal),
        "agreement": agreement,
        "covered": covered and dataclasses.asdict(covered),
    }


def onnx_metadata(options: dict[str, Any]) -> dict[str, Any]:
    """What goes into a file's properties, from a run's options."""
    from zaq import __version__

    return {
        "version": __version__,
        "bits": options["bits"],
        "first_last": options["qconfig"]["first_last"],
        "placement": options["qconfig"]["placement"],
        "target": options.get("target", "onnxruntime"),
        "real_images_read": options["data"],
        "method": options["method"],
        "effort": options["effort"],
        "seed": options["seed"],
        "source": options["source"],
        "card": options["card"],
    }


@torch.no_grad()
def _agreement(state: State) -> dict[str, Any]:
    """How the student compares with its teacher on the synthetic samples; `held_out`: whether none of them was learned
    on. `outputs`: each with its worst channel.
    """
    if state.samples is None:
        return {}
    found: dict[str, Any] = {"samples": len(state.samples), "held_out": state.held_out}
    found["outputs"] = [dataclasses.asdict(o) for o in outputs_of(state)]
    p, q = (
        torch.cat([m(x)[0][0] for x in state.samples.split(state.task.batch)])
        for m in (with_taps(state.task.teacher, []), with_taps(state.student.module, []))
    )
    found["output_sqnr"] = sqnr(p, q)
    if state.task.classes:
        found["top1_agreement"] = float((p.argmax(1) == q.argmax(1)).float().mean())
        found["classes_seen"] = len(p.argmax(1).unique())
    return found


def _lost(agreement: dict[str, Any]) -> list[str]:
    """What has to be said of outputs of which a channel is mostly noise."""
    return [
        f"output {o['number']}: channel {o['worst']} of {o['channels']} has a signal of {o['worst_sqnr']} dB over its "
        f"noise, the middle one {o['median_sqnr']} dB, on synthetic samples; more bits may be needed"
        for o in agreement.get("outputs", [])
        if o["worst_sqnr"] is not None and o["worst_sqnr"] < LOST
    ]


def _covered(state: State) -> Alike | None:
    """How the images that are held out are covered by those learned on, in what the teacher's last layer reads; None
    where there are no such images, or too few.
    """
    learned, held_out = state.images, state.samples if state.held_out else None
    if learned is None or held_out is None or min(len(learned), len(held_out)) <= NEIGHBOURS:
        return None
    learned = learned[:: max(len(learned) // COMPARED, 1)][:COMPARED]  # they may be of several kinds
    real, drawn = (features(state.task, in_parts(x, state.task.batch)) for x in (held_out, learned))
    return measure(real, drawn)


def _uncovered(covered: Alike | None) -> list[str]:
    if covered is None or not covered.low:
        return []
    near, expected = (f"{100 * share:.0f} %" for share in (covered.coverage, covered.expected))
    return [
        f"of the {covered.real} held-out images {near} have one of those learned on beside them, and {expected} would "
        "if all were of one kind: what was learned on is little like them"
    ]
