"""The benchmark as one HTML file with its plots inside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zaq.benchmark.figures import image, plain
from zaq.benchmark.plan import READS_IMAGES
from zaq.benchmark.table import LEGEND, METRICS, Group, facts, heads, metrics, sections

__all__ = ["render"]

TEMPLATE = Path(__file__).with_name("benchmark.html.j2")


def render(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The page for rows in order; `about`: the command or plan they came from."""
    parts = []
    for title, found in sections(rows).items():
        plots = {
            "accuracy over bits": _panels(found, _over_bits),
            "accuracy over minutes": _panels(found, _over_minutes),
        }
        about_it = facts(found)
        table = [
            {"text": g.cells(about_it["metrics"]), "real": g["algorithm"] == READS_IMAGES, "failed": not g.finished}
            for g in found
        ]
        parts.append(
            {"title": title, "facts": about_it, "heads": heads(about_it["metrics"]), "plots": plots, "rows": table}
        )
    seen = {key: list(dict.fromkeys(r[key] for r in rows)) for key in ("zaq", "machine")}
    dates = sorted(r["date"] for r in rows)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text())
    reads = any(r["algorithm"] == READS_IMAGES for r in rows)
    return page.render(
        sections=parts, legend=LEGEND, seen=seen, dates=dates, about=about, cells=len(rows), reads_images=reads
    )


def _panels(found: list[Group], draw: Callable[[Axes, list[Group]], None]) -> str | None:
    """A panel a placement, as what one placement reaches says nothing about another; None where nothing is finished."""
    shown = [g for g in found if g.finished]
    placements = list(dict.fromkeys(g["placement"] for g in shown))
    figure = Figure(figsize=(5.5 * max(len(placements), 1), 3.6))
    for index, placement in enumerate(placements):
        axes = figure.add_subplot(1, len(placements), index + 1)
        metric = _metric(shown)
        if f"float_{metric}" in shown[0].finished[0]:
            axes.axhline(shown[0].mean(f"float_{metric}"), color="black", linestyle="--", linewidth=1, label="float")
        draw(axes, [g for g in shown if g["placement"] == placement])
        axes.set_title(plain(placement), fontsize=9)
        axes.set_ylabel(METRICS[metric] + (", dB" if metric == "psnr" else " %"))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return image(figure) if placements else None


def _over_bits(axes: Axes, shown: list[Group]) -> None:
    """A line a method, bars for the deviation over seeds."""
    order = list(dict.fromkeys(g["bits"] for g in shown))[::-1]  # fewest first
    for name, line in _lines(shown).items():
        line = sorted(line, key=lambda g: order.index(g["bits"]))
        at, spread = [order.index(g["bits"]) for g in line], [g.deviation(f"onnx_{_metric(line)}") or 0 for g in line]
        axes.errorbar(
            at,
            [g.mean(f"onnx_{_metric(line)}") for g in line],
            spread,
            label=plain(name),
            marker="o",
            capsize=2,
            **_style(line[0]),
        )
    axes.set_xticks(range(len(order)), map(plain, order))


def _over_minutes(axes: Axes, shown: list[Group]) -> None:
    """What a minute buys: a point a method and bits."""
    for name, line in _lines(shown).items():
        minutes, top1 = [g.mean("minutes") for g in line], [g.mean(f"onnx_{_metric(line)}") for g in line]
        axes.plot(minutes, top1, marker="o", linestyle="", label=plain(name), **_style(line[0]))
        for x, y, group in zip(minutes, top1, line, strict=True):
            axes.annotate(plain(group["bits"]), (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes")


def _metric(found: list[Group]) -> str:
    """What the groups of a section are judged by."""
    return metrics(found[0].finished)[0]


def _lines(found: list[Group]) -> dict[str, list[Group]]:
    """Groups by what a line of a plot is: a method at its settings and effort, on its grid."""
    lines: dict[str, list[Group]] = {}
    for group in found:
        text = group.cells()
        lines.setdefault(" ".join((text["method"], *text["placement"].split()[1:], text["effort"])), []).append(group)
    return lines


def _style(group: Group) -> dict[str, Any]:
    return {"color": "red"} if group["algorithm"] == READS_IMAGES else {}
