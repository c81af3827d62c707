"""The report of one run as one HTML file: what a reader asks first stands first, and nothing is fetched.

A report of an older zaq lacks some of it; what is not there is left out.
"""

import base64
import io
from collections.abc import Collection
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from zaq.config.card import Card
from zaq.cost.deployment import Deployment, table
from zaq.report import charts
from zaq.report.parts import environment
from zaq.report.tiles import big_tiles
from zaq.stages.singular import SIGMAS

__all__ = ["render"]

SAMPLES_SHOWN = 32
SIDE = 96  # pixels that a sample is shown with at most
GROWN = 4  # weights of a network whose singular values are shown: those that grew most
STEEP = 30  # between the least and the greatest value of a curve; from there on its axis is logarithmic
# The bars of `_costs`: a title, and the parts of a bar with the fields they are read from.
COSTS = (
    ("size", "KB", {"weights": "weights", "biases": "biases", "scales": "scales", "graph": "graph"}, 1024),
    (
        "energy of a sample, estimated",
        "microjoules",
        {"multiply-accumulates": "energy_macs", "SRAM": "energy_sram", "DRAM": "energy_dram"},
        1,
    ),
)
BESIDE = ("stage", "step", "rolled_back")  # in a row of the log, what is no loss
PARTS = {"reconstruct": "block", "refine": "batch"}  # what a stage does one after another
LINKS = {
    "model.onnx": "the integer file, to deploy",
    "usage.py": "a short program that calls it, to be copied",
    "usage.js": "the same for JavaScript, in a browser or in node",
    "usage.cpp": "the same for C++",
    "labels.txt": "what the classes are called",
    "report.json": "all of this page, as numbers",
    "log.jsonl": "the losses, step by step",
    "options.json": "what was asked for",
}
WORDS = {
    "w4a4": "4 bits for weights and 4 for activations, the tensors that layers read",
    "float network": "the network as it came, computing in 32-bit floating point",
    "grid": "the values that a quantized tensor can have: scale x (code - zero point)",
    "clipped": "values outside of the grid, which become its first or its last value",
    "SQNR": "the signal over what quantizing adds to it, in dB; 20 dB is a tenth of the signal, 6 dB half of it",
    "divergence": "KL divergence: by how much the answers' probabilities change; 0 is not at all",
    "synthetic sample": "an image drawn from the network alone, as there are no data",
    "held out": "nothing was learned from these samples; stages are kept or taken back by them",
    "stage": "a part of the method, run one after another",
    "block": "a part of the network that reconstruction learns at a time",
    "checkpoint": "the quantized network in torch, from which the ONNX file is written",
    "kernel": "the piece of onnxruntime that computes a layer, in integers or in float",
}


def render(
    report: dict[str, Any],
    log: list[dict[str, Any]],
    samples: Tensor | None,
    card: Card,
    beside: Collection[str] = (),
) -> str:
    """The page for a report, the rows of its log, and the synthetic samples (N, C, H, W) as the model reads them.

    `beside`: names of the files that lie in its folder; those of LINKS are linked to.
    """
    files = {name: Deployment(**values) for name, values in report.get("deployment", {}).get("files", {}).items()}
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            tiles=big_tiles(report),
            sensitivity=_sensitivity(report),
            activations=_tensors(report, "activation"),
            weights=_tensors(report, "weight"),
            costs=table(files),
            cost_charts=_costs(files),
            stages=_stages(report),
            curves=_curves(report, log),
            singular=_singular(log),
            frontier=_frontier(report),
            sheet=None if samples is None or samples.dim() != 4 else _sheet(samples, card),
            links={name: what for name, what in LINKS.items() if name in beside},
            words=WORDS,
        )
    )


def _sensitivity(report: dict[str, Any]) -> list[list[Any]]:
    """Rows of a table, a layer each, worst first."""
    rows = (report.get("sensitivity") or {}).get("layers", [])
    most = max((row["loss"] for row in rows if row["loss"] is not None), default=0)
    found = []
    for row in rows:
        loss, reads = row["loss"], row["reads_bits"]
        bits = f"w{row['bits']}" + ("" if reads is None else f"a{reads}")
        told = f"{row['module']} ({bits}): {'no number' if loss is None else f'{loss:.3g}'}"
        bar = Markup() if loss is None else charts.bar(loss, most, told)
        found.append([row["module"], bits, _number(loss), bar])
    return found


def _tensors(report: dict[str, Any], kind: str) -> dict[str, Any]:
    """A table of the quantized tensors of a kind, in the order of the network: `heads` and `rows`."""
    tensors = [t for t in report["tensors"] if t["kind"] == kind]
    drawn = any("histogram" in t for t in tensors)
    rows = []
    for t in tensors:
        grid = f"{t['low']:.3g} to {t['high']:.3g}" if kind == "activation" else _reach(t)
        shown = _shape(t) if drawn else []
        rows.append([_named(t), *shown, _number(t.get("sqnr")), t["bits"], {"text": grid, "kind": "short"}])
    heads = ["module", *(["before", "after", "clipped %"] if drawn else []), "SQNR", "bits", "grid"]
    return {"heads": heads, "rows": rows}


def _shape(tensor: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a tensor's histograms: before, after, and the share that is clipped."""
    found = tensor.get("histogram")
    if not found:
        return [*[{"text": Markup(), "kind": "short"}] * 2, _number(None)]
    cells, (first, last) = list[dict[str, Any]](), found["grid"]
    for when in ("before", "after"):
        seen = f"{found['low']:.3g} to {found['high']:.3g}"
        told = f"{tensor['name']}, {when}: {seen} steps, of a grid of {first:g} to {last:g}"
        drawn = charts.histogram(found[when], found["low"], found["high"], told, (first, last))
        cells.append({"text": drawn, "kind": "short"})
    return [*cells, _number(100 * found["clipped"])]


def _named(tensor: dict[str, Any]) -> Any:
    """A tensor by the user's module, and by its name in the graph behind that."""
    module, name = tensor.get("module", ""), tensor["name"]
    if tensor["kind"] == "weight" or not module:
        return module or name
    return Markup("{} <small>{}</small>").format(module, name)


def _reach(tensor: dict[str, Any]) -> str:
    """What a weight's channels reach: the least and the greatest end of their grids."""
    reach = [scale * tensor["integers"][1] for scale in tensor["scale"]]
    return f"± {min(reach):.3g}" + (f" to {max(reach):.3g}" if len(reach) > 1 else "")


def _stages(report: dict[str, Any]) -> dict[str, Any]:
    """A table of the stages, `heads` and `rows`; one that was taken back is grey."""
    stages, found = report["stages"], []
    timed, most = all("seconds" in s for s in stages), max((s.get("seconds", 0) for s in stages), default=0)
    for s in stages:
        cells = [s["name"], s["steps"]]
        if timed:
            told = f"{s['name']}: {s['seconds']:.3g} s"
            cells += [_number(s["seconds"]), charts.bar(s["seconds"], most, told, 2)]
        cells += [_number(s["loss_before"]), _number(s["loss_after"]), "kept" if s["kept"] else "taken back"]
        cells.append({"text": s["note"], "kind": "said"})
        found.append({"cells": cells, "kind": "" if s["kept"] else "failed"})
    heads = ["stage", "steps", *(["seconds", ""] if timed else []), "loss before", "after", "", "what it said"]
    return {"heads": heads, "rows": found}


def _curves(report: dict[str, Any], log: list[dict[str, Any]]) -> list[Markup]:
    """A chart a stage, a curve a loss: both players side by side; dashed where a block begins."""
    found, borders = [], {s["name"]: s.get("borders", []) for s in report["stages"]}
    for stage in dict.fromkeys(row["stage"] for row in log):
        rows = [r for r in log if r["stage"] == stage]
        names = dict.fromkeys(k for r in rows for k in r if k not in BESIDE and not k.startswith(SIGMAS))
        series = {name: [(r["step"], r[name]) for r in rows if name in r] for name in names}
        values = [value for curve in series.values() for _, value in curve]
        if not values:
            continue
        log_axis = min(values) > 0 and max(values) > STEEP * min(values)
        part = PARTS.get(stage, "part")
        marks = {f"{part} {i + 2}": float(step) for i, step in enumerate(borders.get(stage, []))}
        found.append(charts.lines(series, stage, "step", log=log_axis, borders=marks))
    return found


def _singular(log: list[dict[str, Any]]) -> list[Markup]:
    """The largest singular value of the weights that grew most, a chart a network."""
    found, (largest, *_) = dict[str, dict[str, list[tuple[float, float]]]](), SIGMAS
    for row in log:
        for key in (k for k in row if k.startswith(largest)):
            network, _, weight = key.removeprefix(largest).partition(" ")
            found.setdefault(network, {}).setdefault(weight, []).append((row["step"], row[key]))
    drawn = []
    for network, weights in found.items():
        growth = {name: curve[-1][1] / max(curve[0][1], 1e-12) for name, curve in weights.items()}
        worst = sorted(growth, key=lambda name: -growth[name])[:GROWN]
        series = {f"{name}, x {growth[name]:.3g}": weights[name] for name in worst}
        drawn.append(charts.lines(series, f"largest singular values of the {network}", "step"))
    return drawn


def _frontier(report: dict[str, Any]) -> Markup | None:
    """What weights of mixed bits cost: the least sum of KL sensitivities for each size, and the size taken."""
    if not report["frontier"]:
        return None
    found = [(size / 1024, total) for size, total in report["frontier"]]
    stairs = [found[0]]
    for before, after in pairwise(found):
        stairs += [(after[0], before[1]), after]
    taken = {"the size that was taken": report["weight_bytes"] / 1024}
    title = "bits of each layer: size against sensitivity, and the size taken (dashed)"
    return charts.lines(
        {"sum of KL sensitivities": stairs}, title, "KB of weights, packed", "sum", log=True, borders=taken
    )


def _costs(files: dict[str, Deployment]) -> list[Markup]:
    """Bytes and energy of every file by their parts, the float model's above."""
    return [
        charts.bars(
            {name: {label: getattr(d, field) / by for label, field in parts.items()} for name, d in files.items()},
            title,
            unit,
        )
        for title, unit, parts, by in COSTS
        if files
    ]


def _sheet(samples: Tensor, card: Card) -> str:
    """Some of the samples side by side, as a data URL of a PNG."""
    low, high = card.bounds()
    some = samples[:: max(len(samples) // SAMPLES_SHOWN, 1)][:SAMPLES_SHOWN]  # halves may be of two kinds
    pixels = ((some.detach() - low) / (high - low)).clamp(0, 1).mul(255).round().byte().numpy()
    channels = 3 if pixels.shape[1] == 3 else 1
    height, width = pixels.shape[2:]
    small = min(1.0, SIDE / max(height, width))
    height, width = max(int(height * small), 1), max(int(width * small), 1)
    columns = min(8, len(pixels))
    sheet = Image.new("RGB", (columns * width, -(-len(pixels) // columns) * height), "white")
    for i, sample in enumerate(pixels):
        colours = sample[:channels][:: -1 if card.order == "bgr" else 1].transpose(1, 2, 0)
        tile = Image.fromarray(np.repeat(colours, 3 // channels, 2)).resize((width, height))
        sheet.paste(tile, (i % columns * width, i // columns * height))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _number(value: float | None) -> dict[str, Any]:
    """A cell of a number, which may be missing."""
    return {"text": "" if value is None else f"{value:.3g}", "value": value, "kind": "n"}
