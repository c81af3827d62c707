"""Rows as a tidy CSV file, and as a Markdown table over seeds."""

import csv
import io
import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zaq.benchmark.published import best_drop, published

__all__ = [
    "COLUMNS",
    "LEGEND",
    "METRICS",
    "Group",
    "as_csv",
    "as_markdown",
    "facts",
    "groups",
    "heads",
    "in_order",
    "metrics",
    "sections",
    "whole",
]

COLUMNS = (
    "model",
    "source",
    "model_hash",
    "data",
    "method",
    "algorithm",
    "settings",
    "bits",
    "placement",
    "weights",
    "first_last",
    "effort",
    "seed",
    "float_top1",
    "onnx_top1",
    "fake_quant_top1",
    "drop",
    "interval",
    "agreement",
    "minutes",
    "peak_mb",
    "file_kb",
    "published_top1",
    "published_float",
    "published_protocol",
    "published_source",
    "images",
    "error",
    "zaq",
    "machine",
    "date",
)
SAME = (
    "model",
    "model_hash",
    "data",
    "placement",
    "weights",
    "first_last",
    "bits",
    "method",
    "algorithm",
    "settings",
    "effort",
)
# What a row may have been measured by, and its name in tables; the first of a row's is what it is judged by.
METRICS = {
    "top1": "top-1",
    "map50": "mAP@50",
    "map": "mAP@50:95",
    "miou": "mIoU",
    "pixel_accuracy": "pixels",
    "psnr": "PSNR",
    "ssim": "SSIM",
}
MODELS = ("float", "onnx", "fake_quant")
LARGEST = 1e12  # of a number in a row
MEASURED = ("drop", "interval", "agreement", "minutes", "peak_mb", "file_kb", "images")  # numbers beside those
DIGITS = {"peak_mb": 0, "file_kb": 0, "minutes": 3, "interval": 3}  # of numbers in the CSV file; 2 elsewhere

LEGEND = (
    "Published numbers: P1 is the protocol of GDFQ and its successors (placement gdfq: every layer at the same bits, "
    "activations after "
    "ReLU only), P2 that of BRECQ and Genie (placement brecq: first and last layer at 8 bits), SQ that of SQuant. "
    "They are of other "
    "checkpoints, so compare drops. T: a table of that paper; readme: the official repository; note, mem: "
    "second-hand, unverified. "
    "Best: without real data."
)


def whole(row: Any) -> bool:
    """Whether something read from a file is a row that tables can be made of: texts where they read texts, and, unless
    the cell failed, numbers where they compute.
    """
    if not isinstance(row, dict) or not isinstance(row.get("seed"), int):
        return False
    if not all(isinstance(row.get(k), str) for k in (*SAME, "source", "zaq", "machine", "date", "error")):
        return False
    numbers = {k: v for k, v in row.items() if k in MEASURED or k.startswith(tuple(f"{m}_" for m in MODELS))}
    sound = all(isinstance(v, int | float) and abs(v) < LARGEST for v in numbers.values())
    finished = {"minutes", "peak_mb", "file_kb", "images"} <= set(numbers) and any(f"onnx_{m}" in row for m in METRICS)
    return sound and (bool(row["error"]) or finished)


@dataclass(frozen=True)
class Group:
    """What differs in nothing but the seed."""

    rows: list[dict[str, Any]]

    def __getitem__(self, key: str) -> Any:
        """What the rows have in common."""
        return self.rows[0][key]

    @property
    def finished(self) -> list[dict[str, Any]]:
        return [r for r in self.rows if not r["error"]]

    def mean(self, column: str) -> float:
        """Over those of the finished rows that have it; NaN where none has."""
        found = [r[column] for r in self.finished if column in r]
        return float(statistics.mean(found)) if found else math.nan

    def deviation(self, column: str) -> float | None:
        """The sample standard deviation over seeds; of one seed there is none."""
        found = [r[column] for r in self.finished if column in r]
        return statistics.stdev(found) if len(found) > 1 else None

    def cells(self, measures: Sequence[str] = ()) -> dict[str, str]:
        """The row of a table of `measures` (of METRICS; none: its own), as text."""
        measures = measures or metrics(self.finished)
        failed = [r["error"] for r in self.rows if r["error"]]
        ends = f"first-last {self['first_last']}" if self["first_last"] else ""
        text = {
            "method": self["method"]
            + (f" ({self['settings']})" if self["settings"] and "[" not in self["method"] else ""),
            "bits": self["bits"],
            "placement": " ".join(filter(None, (self["placement"], self["weights"], ends))),
            "effort": self["effort"],
        }
        if self.finished:
            for measure in measures:
                spread, mean = self.deviation(f"onnx_{measure}"), self.mean(f"onnx_{measure}")
                text[METRICS[measure]] = (
                    f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else "") + f" ({len(self.finished)})"
                )
            text[METRICS[measures[0]]] += f", {len(failed)} failed" if failed else ""
            shown = {"drop": "drop", "fake-quant": f"fake_quant_{measures[0]}", "agrees %": "agreement"}
            text |= {head: f"{self.mean(column):.2f}" for head, column in shown.items() if column in self.finished[0]}
            text |= {
                "minutes": f"{self.mean('minutes'):.1f}",
                "peak MB": f"{self.mean('peak_mb'):.0f}",
                "KB": f"{self.mean('file_kb'):.0f}",
            }
        else:
            text |= {METRICS[measures[0]]: f"failed: {failed[0]}"}
        found = published(self.rows[0])
        if found:
            gap = found["published_float"] - found["published_top1"]
            text["published drop"] = f"{gap:.2f} ({found['published_protocol']}) {found['published_source']}"
        return text | {"best published drop": best_drop(self.rows[0])}


HEADS = (
    "method",
    "bits",
    "placement",
    "effort",
    "top-1",
    "drop",
    "fake-quant",
    "agrees %",
    "minutes",
    "peak MB",
    "KB",
    "published drop",
    "best published drop",
)


OF_CLASSES = ("agrees %", "published drop", "best published drop")  # heads of classification alone


def metrics(rows: list[dict[str, Any]]) -> list[str]:
    """What rows were measured by; top-1 where none is finished."""
    return [m for m in METRICS if any(f"onnx_{m}" in r for r in rows)] or ["top1"]


def heads(measures: Sequence[str]) -> list[str]:
    """The heads of a table of `measures`."""
    kept = [h for h in HEADS if measures[0] == "top1" or h not in OF_CLASSES]
    at = kept.index("top-1")
    return [*kept[:at], *(METRICS[m] for m in measures), *kept[at + 1 :]]


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By model, placement and bits (most first), then method and seed."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        bits = [-int(b) if re.fullmatch(r"\d{1,9}", b) else 0 for b in row["bits"][1:].split("a")]
        return *(row[k] for k in SAME[:4]), bits, *(row[k] for k in SAME[4:]), row["seed"]

    return sorted(rows, key=key)


def groups(rows: list[dict[str, Any]]) -> list[Group]:
    """Rows in order, those that differ in the seed alone together."""
    return [Group(list(found)) for _, found in itertools.groupby(rows, lambda r: tuple(r[k] for k in SAME))]


def sections(rows: list[dict[str, Any]]) -> dict[str, list[Group]]:
    """Groups by model and data set, each of which has one float accuracy, under a title."""
    by_model: dict[tuple[str, str], list[Group]] = {}
    for group in groups(rows):
        by_model.setdefault((group["model_hash"], group["data"]), []).append(group)
    return {
        f"{g[0]['model']} ({Path(g[0]['source']).name}, {g[0]['model_hash'][:8]}), {g[0]['data']}": g
        for g in by_model.values()
    }


def facts(found: list[Group]) -> dict[str, Any]:
    """A section's measures, the float model's values under their heads, its images, and how sure so many make of a
    top-1.
    """
    rows = [r for g in found for r in g.finished]
    measures = metrics(rows)
    floats = {METRICS[m]: f"{rows[0][f'float_{m}']:.2f}" for m in measures if rows and f"float_{m}" in rows[0]}
    widest = max((r["interval"] for r in rows if "interval" in r), default=None)
    return {"metrics": measures, "float": floats, "images": rows[0]["images"] if rows else None, "interval": widest}


def as_csv(rows: list[dict[str, Any]]) -> str:
    """One row a cell, with the literature's numbers beside it."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _columns(rows), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        full = {**row, **published(row)}
        writer.writerow({k: round(v, DIGITS.get(k, 2)) if isinstance(v, float) else _inert(v) for k, v in full.items()})
    return stream.getvalue()


def _inert(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, as text; numbers as they are."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """COLUMNS, with those of every measure there is in place of top-1's."""
    at = COLUMNS.index("float_top1")
    return [*COLUMNS[:at], *(f"{model}_{m}" for m in metrics(rows) for model in MODELS), *COLUMNS[at + len(MODELS) :]]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A table a model and data set: mean ± standard deviation (number) over seeds."""
    lines = [
        "# Results",
        "",
        "Measured of the ONNX file in onnxruntime, in percent: mean ± standard deviation over seeds (their number).",
    ]
    for title, found in sections(rows).items():
        about = facts(found)
        lines += ["", f"## {_plain(title)}", ""]
        names = heads(about["metrics"])
        if about["images"]:
            sure = (
                f", whose number alone leaves a top-1 open by ±{about['interval']:.2f} points (95 %)"
                if about["interval"]
                else ""
            )
            lines += [f"{about['images']} images{sure}.", ""]
        lines += [_line(names), _line("---" for _ in names)]
        if about["float"]:
            lines.append(_line({"method": "float", **about["float"]}.get(head, "") for head in names))
        for group in found:
            text = group.cells(about["metrics"])
            lines.append(_line(text.get(head, "") for head in names))
    return "\n".join([*lines, "", LEGEND, ""])


def _line(words: Any) -> str:
    return "| " + " | ".join(_plain(str(w)) for w in words) + " |"


def _plain(text: str) -> str:
    """Text inside Markdown that is neither HTML, nor a link or an image, nor the end of a cell or of a line."""
    for found, safe in (("&", "&amp;"), ("<", "&lt;"), ("](", "]\\("), ("|", "\\|"), ("\n", " "), ("\r", " ")):
        text = text.replace(found, safe)
    return text
