"""What happened, as facts: the report of a run, from which JSON, tables and the page are made."""

import dataclasses
import math
import platform
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zaq.engine.journal import Journal
from zaq.engine.state import NOT_FINITE, State, broken_images
from zaq.errors import SourceError, TrainingError
from zaq.ir.nodes import attribute, input_node
from zaq.ir.taps import with_taps
from zaq.quant.alike import channel_dim, spreads
from zaq.stats.mixed import packed_bytes

__all__ = ["SCHEMA", "describe", "method_dict", "onnx_metadata"]

SCHEMA = 1
LOST = 3.0  # dB; less is more than half as much noise as signal


def method_dict(method: Any) -> dict[str, Any]:
    """A method's name and its constants."""
    constants = dataclasses.asdict(method) if dataclasses.is_dataclass(method) and not isinstance(method, type) else {}
    own = constants.pop("stage_constants", {})
    return {"name": method.name or type(method).__name__.lower(), **constants, **own}


def describe(state: State, journal: Journal, options: dict[str, Any], minutes: float) -> dict[str, Any]:
    """The report: options, stages, every tensor's grid, per-layer SQNR, notes."""
    from zaq import __version__

    agreement = _agreement(state)
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
        "notes": [*journal.notes, *_lost(agreement)],
        "in_float": state.student.placement.in_float,
        "layer_bits": state.task.qconfig.layer_bits,
        "frontier": state.frontier,
        "weight_bytes": packed_bytes(state.task.teacher, state.student.placement.weights),
        "tensors": _tensors(state),
        "agreement": agreement,
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
    tensors = state.student.placement.tensors
    rows = []
    values: tuple[list[Tensor], list[Tensor]] | None = None
    if state.samples is not None:
        inner = [n for n in dict.fromkeys(tensors.values()) if not _is_input(state, n)]
        some = state.samples[: state.task.batch]
        values = with_taps(state.task.teacher, inner)(some)[1], with_taps(state.student.module, inner)(some)[1]
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
        if values is not None and tensors[name] in inner:
            p, q = (v[inner.index(tensors[name])] for v in values)
            row |= {"seen_low": float(p.min()), "seen_high": float(p.max()), "sqnr": sqnr(p, quantizer(q))}
        rows.append(row)
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


def sqnr(signal: Tensor, quantized: Tensor) -> float | None:
    """Signal to quantization noise, 10 log10(E[x^2] / E[(x - x^)^2]), in dB and in double; 200 where they are equal.
    None where either is not finite: of what is no number nothing can be said, least of all that it is right.
    """
    noise = float((signal.double() - quantized.double()).pow(2).mean())
    power = float(signal.double().pow(2).mean())
    if not (math.isfinite(noise) and math.isfinite(power)):
        return None
    if noise <= 1e-20 * max(power, 1e-20):
        return 200.0
    return round(max(10 * math.log10(max(power, 1e-300) / noise), -200.0), 2)


@torch.no_grad()
def _agreement(state: State) -> dict[str, Any]:
    """How the student compares with its teacher on the synthetic samples; `held_out`: whether none of them was learned
    on. `outputs`: each with its worst channel.
    """
    if state.samples is None:
        return {}
    p, q = (_outputs(m, state) for m in (state.task.teacher, state.student.module))
    count = len(state.samples)
    if broken := broken_images([p]):
        raise SourceError(NOT_FINITE.format(broken, count))
    if broken := broken_images([q]):
        raise TrainingError(f"the quantized model's outputs are NaN or infinite for {broken} of {count} samples.")
    found: dict[str, Any] = {
        "samples": count,
        "held_out": state.held_out,
        "output_sqnr": sqnr(p[0], q[0]),
        "outputs": [_channels(a, b) for a, b in zip(p, q, strict=True) if a.is_floating_point()],
    }
    if state.task.classes:
        found["top1_agreement"] = float((p[0].argmax(1) == q[0].argmax(1)).float().mean())
        found["classes_seen"] = len(p[0].argmax(1).unique())
    return found


def _outputs(module: torch.nn.Module, state: State) -> list[Tensor]:
    assert state.samples is not None
    parts = [pytree.tree_leaves(module(x)) for x in state.samples.split(state.task.batch)]
    return [torch.cat(list(output)) for output in zip(*parts, strict=True)]


def _channels(p: Tensor, q: Tensor) -> dict[str, Any]:
    """Of an output's channels, each against its own spread: 10 log10(Var[p_c] / E[(p_c - q_c)^2]), the least and the
    middle one, in dB."""
    dim = channel_dim(p)
    rows, others = (x.double().movedim(dim, 0).flatten(1) for x in (p, q))
    power = spreads(rows.std(1, correction=0)).square()
    decibels = (10 * (power / (rows - others).square().mean(1).clamp(min=1e-20 * power)).log10()).clamp(max=200)
    worst = int(decibels.argmin())
    return {
        "channels": len(decibels),
        "dim": dim,
        "worst": worst,
        "worst_sqnr": round(float(decibels[worst]), 2),
        "median_sqnr": round(float(decibels.median()), 2),
    }


def _lost(agreement: dict[str, Any]) -> list[str]:
    """What has to be said of outputs of which a channel is mostly noise."""
    return [
        f"output {i}: channel {o['worst']} of {o['channels']} has a signal of {o['worst_sqnr']} dB over its noise, the "
        f"middle one {o['median_sqnr']} dB, on synthetic samples; more bits may be needed"
        for i, o in enumerate(agreement.get("outputs", []))
        if o["worst_sqnr"] < LOST
    ]


def _is_input(state: State, name: str) -> bool:
    return name == input_node(state.task.teacher).name
