"""The report as one HTML file with its pictures inside."""

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from zaq.config.card import Card
from zaq.cost.deployment import Deployment, table
from zaq.stages.singular import SIGMAS

__all__ = ["image", "plain", "render"]

SAMPLES_SHOWN = 32
# The bars of `_costs`: a title, and the parts of a bar with the fields they are read from.
COSTS = (
    ("KB", {"weights": "weights", "biases": "biases", "scales": "scales", "graph": "graph"}, 1024),
    ("microjoules a sample", {"multiply-accumulates": "energy_macs", "SRAM": "energy_sram", "DRAM": "energy_dram"}, 1),
)
BESIDE = ("stage", "step", "rolled_back")  # in a row of the log, what is no loss
TEMPLATE = Path(__file__).with_name("report.html.j2")


def render(report: dict[str, Any], log: list[dict[str, Any]], samples: Tensor | None, card: Card) -> str:
    """The page for a report, the rows of its log, and the synthetic samples (N, C, H, W) as the model reads them."""
    activations = [t for t in report["tensors"] if t["kind"] == "activation"]
    weights = [t for t in report["tensors"] if t["kind"] == "weight"]
    files = {name: Deployment(**values) for name, values in report.get("deployment", {}).get("files", {}).items()}
    pictures = {
        "losses": _losses(log),
        "singular": _singular(log),
        "samples": None if samples is None or samples.dim() != 4 else _sheet(samples, card),
        "activations": _ranges(
            [t for t in activations if "seen_low" in t], "activation ranges: seen (line) and grid (bar)"
        ),
        "weights": _weights(weights),
        "frontier": _frontier(report),
        "sqnr": _sqnr([t for t in report["tensors"] if t.get("sqnr") is not None]),
        "costs": _costs(files),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text())
    return page.render(report=report, pictures=pictures, activations=activations, weights=weights, costs=table(files))


def plain(text: str) -> str:
    """A name as a figure can show it: no formula begins at a `$`, and no picture becomes as wide as somebody likes."""
    return text[:100].replace("$", r"\$")


def image(figure: Figure) -> str:
    """A figure as a data URL, to lie inside a page."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name in letters that the font lacks
        figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _losses(log: list[dict[str, Any]]) -> str | None:
    """One panel a stage, one line a loss: both players side by side."""
    stages = list(dict.fromkeys(row["stage"] for row in log))
    if not stages:
        return None
    figure = Figure(figsize=(5 * len(stages), 3))
    for i, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), i + 1)
        rows = [r for r in log if r["stage"] == stage]
        for name in dict.fromkeys(k for r in rows for k in r if k not in BESIDE and not k.startswith(SIGMAS)):
            points = [(r["step"], r[name]) for r in rows if name in r]
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axes.set_title(stage)
        axes.set_xlabel("step")
        axes.legend(fontsize=7)
    return image(figure)


def _singular(log: list[dict[str, Any]]) -> str | None:
    """The three largest singular values of each weight, a panel a network, which names the weight that grew most."""
    names = dict.fromkeys(k for row in log for k in row if k.startswith(SIGMAS))
    networks = dict.fromkeys(k.removeprefix(which).split()[0] for k in names for which in SIGMAS if k.startswith(which))
    if not networks:
        return None
    figure = Figure(figsize=(10, 3))
    for i, network in enumerate(networks):
        axes = figure.add_subplot(1, len(networks), i + 1)
        grown = dict[str, float]()
        for which, style in zip(SIGMAS, ("-", "--", ":"), strict=True):
            for name in (n for n in names if n.startswith(f"{which}{network} ")):
                points = [(row["step"], row[name]) for row in log if name in row]
                axes.plot(*zip(*points, strict=True), style, linewidth=0.7)
                if which == SIGMAS[0]:
                    grown[name.removeprefix(which)] = points[-1][1] / max(points[0][1], 1e-12)
        most = max(grown, key=lambda name: grown[name])
        axes.set_title(plain(f"{most}: x {grown[most]:.3g}"), fontsize=8)
        axes.set_yscale("log")
        axes.set_xlabel("step")
    return image(figure)


def _sheet(samples: Tensor, card: Card) -> str:
    low, high = card.bounds()
    some = samples[:: max(len(samples) // SAMPLES_SHOWN, 1)][:SAMPLES_SHOWN]  # halves may be of two kinds
    pixels = ((some.detach() - low) / (high - low)).clamp(0, 1).numpy()
    channels = 3 if pixels.shape[1] == 3 else 1
    columns = min(8, len(pixels))
    rows = -(-len(pixels) // columns)
    tiles = np.ones((rows * columns, channels, *pixels.shape[2:]), np.float32)
    tiles[: len(pixels)] = pixels[:, :channels][:, :: -1 if card.order == "bgr" else 1]
    height, width = pixels.shape[2:]
    sheet = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    figure = Figure(figsize=(8, rows))
    axes = figure.add_subplot()
    axes.imshow(sheet.reshape(rows * height, columns * width, channels).squeeze(), cmap="gray", interpolation="nearest")
    axes.set_axis_off()
    return image(figure)


def _ranges(tensors: list[dict[str, Any]], title: str) -> str | None:
    if not tensors:
        return None
    figure = Figure(figsize=(8, 1 + 0.2 * len(tensors)))
    axes = figure.add_subplot()
    rows = np.arange(len(tensors))
    axes.barh(
        rows, [t["high"] - t["low"] for t in tensors], left=[t["low"] for t in tensors], color="tab:blue", alpha=0.35
    )
    axes.hlines(rows, [t["seen_low"] for t in tensors], [t["seen_high"] for t in tensors], color="black", linewidth=1.5)
    axes.set_yticks(rows, [f"{plain(t['name'])} ({t['bits']} bit)" for t in tensors], fontsize=6)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    return image(figure)


def _weights(tensors: list[dict[str, Any]]) -> str | None:
    """Per weight: the reach of each output channel's grid, as a dot."""
    if not tensors:
        return None
    figure = Figure(figsize=(8, 1 + 0.2 * len(tensors)))
    axes = figure.add_subplot()
    for row, tensor in enumerate(tensors):
        reach = np.array(tensor["scale"]) * tensor["integers"][1]
        axes.scatter(reach, np.full(len(reach), row), s=6, alpha=0.5, color="tab:orange")
        axes.scatter([max(-tensor["seen_low"], tensor["seen_high"])], [row], marker="|", s=60, color="black")
    axes.set_yticks(range(len(tensors)), [f"{plain(t['name'])} ({t['bits']} bit)" for t in tensors], fontsize=6)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_title("weights: reach of each channel's grid (dots) and the largest weight (bar)", fontsize=9)
    return image(figure)


def _frontier(report: dict[str, Any]) -> str | None:
    """What weights of mixed bits cost: the least sum of KL sensitivities for each size,
    and the size that was chosen."""
    if not report["frontier"]:
        return None
    figure = Figure(figsize=(6, 3))
    axes = figure.add_subplot()
    kilobytes, omega = zip(*[(size / 1024, total) for size, total in report["frontier"]], strict=True)
    axes.step(kilobytes, omega, where="post", linewidth=1)
    axes.axvline(report["weight_bytes"] / 1024, color="black", linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("KB of weights, packed")
    axes.set_ylabel("sum of KL sensitivities")
    axes.set_title("bits of each layer: the frontier, and the size taken (dashed)", fontsize=9)
    return image(figure)


def _sqnr(tensors: list[dict[str, Any]]) -> str | None:
    if not tensors:
        return None
    figure = Figure(figsize=(8, 1 + 0.16 * len(tensors)))
    axes = figure.add_subplot()
    colors = ["tab:orange" if t["kind"] == "weight" else "tab:blue" for t in tensors]
    axes.barh(range(len(tensors)), [min(t["sqnr"], 60) for t in tensors], color=colors)
    axes.set_yticks(range(len(tensors)), [plain(t["name"]) for t in tensors], fontsize=6)
    axes.invert_yaxis()
    axes.set_title("SQNR on synthetic samples, dB: activations (blue), weights (orange)", fontsize=9)
    return image(figure)


def _costs(files: dict[str, Deployment]) -> str | None:
    """Bytes and energy of every file by their parts, the float model's above."""
    if not files:
        return None
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(files)))
    for panel, (title, parts, unit) in enumerate(COSTS):
        axes = figure.add_subplot(1, len(COSTS), panel + 1)
        left = np.zeros(len(files))
        for label, field in parts.items():
            values = np.array([getattr(costs, field) / unit for costs in files.values()])
            axes.barh(list(files), values, left=left, label=label)
            left += values
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=6)
    figure.tight_layout()
    return image(figure)
