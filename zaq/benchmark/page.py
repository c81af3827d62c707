"""The benchmark as one HTML file with its plots inside, and links to the reports of its cells."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from zaq.benchmark.plan import READS_IMAGES
from zaq.benchmark.table import LEGEND, METRICS, Group, facts, heads, metrics, sections
from zaq.report.charts import Point, lines, scatter
from zaq.report.parts import environment

__all__ = ["render"]

PROTOCOLS = {"P1": "GDFQ's protocol", "P2": "BRECQ's protocol", "SQ": "SQuant's protocol"}
REPORTS = "reports"  # the head of the links


def render(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The page for rows in order; `about`: the command or plan they came from."""
    parts = [_section(title, found) for title, found in sections(rows).items()]
    seen = {key: list(dict.fromkeys(r[key] for r in rows)) for key in ("zaq", "machine")}
    return (
        environment()
        .get_template("benchmark.html.j2")
        .render(
            sections=parts,
            legend=_in_words(LEGEND),
            seen=seen,
            dates=sorted(r["date"] for r in rows),
            about=about,
            cells=len(rows),
            reads_images=any(r["algorithm"] == READS_IMAGES for r in rows),
        )
    )


def _section(title: str, found: list[Group]) -> dict[str, Any]:
    """A model on a data set: its table, and what is drawn of it."""
    about = facts(found)
    names = [*heads(about["metrics"]), REPORTS]
    best = _best(found)
    table = (
        [[{"text": "float", "value": ""}, *(about["float"].get(head, "") for head in names[1:])]]
        if about["float"]
        else []
    )
    rows = [{"cells": _cells(group, names, about["metrics"]), "kind": _kind(group, group in best)} for group in found]
    charts = [chart for chart in (_over_bits(found), _over(found, best, "file_kb", "KB"),
                                  _over(found, best, "minutes", "minutes")) if chart]  # fmt: skip
    return {"title": title, "facts": about, "heads": names, "rows": [*table, *rows], "charts": charts}


def _kind(group: Group, best: bool) -> str:
    if group["algorithm"] == READS_IMAGES:
        return "real"
    return "failed" if not group.finished else "best" if best else ""


def _best(found: list[Group]) -> list[Group]:
    """Of the groups at the same bits and placement that read no real image, where there are several, the one that is
    judged best."""
    rivals: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        if group.finished and group["algorithm"] != READS_IMAGES:
            rivals.setdefault((group["bits"], group.cells()["placement"]), []).append(group)
    metric = f"onnx_{metrics([r for g in found for r in g.finished])[0]}"
    return [max(groups, key=lambda g: g.mean(metric)) for groups in rivals.values() if len(groups) > 1]


def _cells(group: Group, names: list[str], measures: list[str]) -> list[Any]:
    """A row: what is a number is sorted as one, however it is written."""
    text = {head: _in_words(words) for head, words in group.cells(measures).items()}
    links = Markup(" ").join(
        Markup('<a href="cells/{}/run/report.html">{}</a>').format(quote(str(r["cell"])), f"seed {r['seed']}")
        for r in group.finished
        if "cell" in r
    )
    return [links if head == REPORTS else _cell(text.get(head, "")) for head in names]


def _cell(text: str) -> Any:
    number = re.match(r"-?\d+(\.\d+)?(?![\w.])", text)
    return {"text": text, "value": float(number[0])} if number else text


def _in_words(text: str) -> str:
    """The names of protocols as words."""
    text = re.sub(r"\b(P1|P2|SQ)\b", lambda match: PROTOCOLS[match[0]], text)
    return text.replace(" (other protocol)", ", not this row's")


def _over_bits(found: list[Group]) -> Markup | None:
    """A line a method, over its bits, fewest first."""
    shown = [g for g in found if g.finished]
    order = list(dict.fromkeys(g["bits"] for g in shown))[::-1]
    if len(order) < 2:
        return None
    metric = metrics(shown[0].finished)[0]
    series = {
        name: sorted((float(order.index(g["bits"])), g.mean(f"onnx_{metric}")) for g in line)
        for name, line in _lines(shown).items()
    }
    title = f"{METRICS[metric]} over bits: {', '.join(f'{i} is {bits}' for i, bits in enumerate(order))}"
    return lines(series, title, "bits", METRICS[metric], points=True)


def _over(found: list[Group], best: list[Group], column: str, unit: str) -> Markup | None:
    """What a kilobyte, or a minute, buys: a dot a method and bits, the float network's accuracy across."""
    shown = [g for g in found if g.finished]
    if not shown:
        return None
    metric = metrics(shown[0].finished)[0]
    points = [
        Point(
            group.mean(column), group.mean(f"onnx_{metric}"), name,
            f"{name}, {group['bits']}\n{group.mean(f'onnx_{metric}'):.2f} at {group.mean(column):.4g} {unit}",
            str(group["bits"]), group in best,
        )
        for name, line in _lines(shown).items() for group in line
    ]  # fmt: skip
    level = {"float": shown[0].mean(f"float_{metric}")} if f"float_{metric}" in shown[0].finished[0] else None
    return scatter(points, f"{METRICS[metric]} over {unit}", unit, METRICS[metric], level=level)


def _lines(found: Iterable[Group]) -> dict[str, list[Group]]:
    """Groups by what a line of a plot is: a method at its settings and effort, on its grid and placement."""
    found_lines: dict[str, list[Group]] = {}
    for group in found:
        text = group.cells()
        found_lines.setdefault(", ".join((text["method"], text["placement"], text["effort"])), []).append(group)
    return found_lines
