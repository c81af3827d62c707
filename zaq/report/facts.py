"""What happened, as facts: the report of a run, from which JSON, tables and the page are made."""

import dataclasses
import itertools
import math
import platform
from typing import Any

import torch

from zaq.engine.journal import Journal
from zaq.engine.state import State
from zaq.engine.store import in_parts
from zaq.ir.nodes import attribute, input_node, shape_of
from zaq.ir.taps import with_taps
from zaq.report.outputs import outputs_of, sqnr
from zaq.stats.mixed import packed_bytes
from zaq.synth.density import NEIGHBOURS, Alike, features, measure

__all__ = ["SCHEMA", "describe", "method_dict", "onnx_metadata"]

SCHEMA = 1
TOGETHER = 2**25  # bytes of activations that are looked at together
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
        "tensors": _tensors(state),
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
def _tensors(state: State) -> list[dict[str, Any]]:
    """Every quantized tensor: what it is, its grid, and how well the grid holds it (SQNR in dB, synthetic samples)."""
    rows = []
    seen = _seen(state) if state.samples is not None else {}
    for name, quantizer in state.student.placement.activations.items():
        low, high = quantizer.limits()
        row = {
            "name": name,
            "kind": "activation",
            "bits": quantizer.bits,
            "scale": quantizer.scale[0].item(),
            "zero_point": int(quantizer.zero_point[0]),
            "low": low,
            "high": high,
        }
        rows.append(row | seen.get(name, {}))
    for name, quantizer in state.student.placement.weights.items():
        weight = state.student.weight(name)
        rows.append(
            {
                "name": name,
                "kind": "weight",
                "bits": quantizer.bits,
                "integers": [quantizer.quant_min, quantizer.quant_max],
                "scale": quantizer.scale.tolist(),
                "zero_point": quantizer.zero_point.tolist(),
                "seen_low": float(weight.min()),
                "seen_high": float(weight.max()),
                "elements": weight.numel(),
                "sqnr": sqnr(attribute(state.task.teacher, name), quantizer(weight)),
            }
        )
    return rows


def _seen(state: State) -> dict[str, dict[str, Any]]:
    """Of each quantizer of activations the range and the SQNR on a batch of samples. As many tensors at a time as have
    TOGETHER bytes: all of them are more than training takes."""
    assert state.samples is not None
    tensors, some = state.student.placement.tensors, state.samples[: state.task.batch]
    sizes = {n.name: len(some) * 4 * math.prod(shape_of(n) or ()) for n in state.task.teacher.graph.nodes}
    names, found = [n for n in dict.fromkeys(tensors.values()) if not _is_input(state, n)], dict[str, dict[str, Any]]()
    ends = list(itertools.accumulate(sizes[n] for n in names))
    for _, group in itertools.groupby(zip(names, ends, strict=True), lambda pair: pair[1] // TOGETHER):
        inner = [name for name, _ in group]
        values = with_taps(state.task.teacher, inner)(some)[1], with_taps(state.student.module, inner)(some)[1]
        of_both = dict(zip(inner, zip(*values, strict=True), strict=True))
        for name, quantizer in state.student.placement.activations.items():
            if tensors[name] in of_both:
                p, q = of_both[tensors[name]]
                low, high = float(p.min()), float(p.max())
                told = sqnr(p.clamp(*quantizer.known), quantizer(q))
                found[name] = {"seen_low": low, "seen_high": high, "sqnr": told}
    return found


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


def _is_input(state: State, name: str) -> bool:
    return name == input_node(state.task.teacher).name


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
