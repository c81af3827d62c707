"""Several runs side by side: what they were asked for, what came of it, and where they differ layer by layer."""

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zaq.config.bounds import plain_json, plain_text
from zaq.errors import SourceError, UserError
from zaq.report.charts import Point, bar, bars, scatter
from zaq.report.parts import environment
from zaq.run import Run

__all__ = ["Compared", "Figure", "compared", "render"]

LAYERS = 40  # that differ most, on the page
# Parts of the options that say nothing of a choice: what was typed, and what the model itself says.
UNASKED = ("call", "interface", "source", "card.class_names", "memory")
Value = float | str | None


@dataclass(frozen=True)
class Figure:
    """A row of the table of what came of it: a value for each run, as number where it is one, and which is best."""

    name: str
    values: tuple[Value, ...]
    digits: int = 1
    better: int = 0  # 1: the greatest is best, -1: the least, 0: none is

    def texts(self) -> list[str]:
        """As one reads them; nothing where a run says nothing."""
        return ["" if v is None else v if isinstance(v, str) else f"{v:.{self.digits}f}" for v in self.values]

    def best(self) -> list[bool]:
        """Which are the best of several that differ."""
        found = [v for v in self.values if isinstance(v, float)]
        if not self.better or len(found) < 2 or len({round(v, self.digits) for v in found}) < 2:
            return [False] * len(self.values)
        most = max(found, key=lambda v: self.better * v)
        return [isinstance(v, float) and round(v, self.digits) == round(most, self.digits) for v in self.values]


@dataclass(frozen=True)
class Compared:
    """Runs by their names. options: those that differ, a value for each run. figures: what came of it. layers: SQNR in
    dB of tensors that several runs round, and bits, those first that differ most. models: of how many models they are.
    """

    names: tuple[str, ...]
    places: tuple[Path, ...]
    models: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    figures: list[Figure]
    layers: dict[str, tuple[tuple[float | None, int | None], ...]]
    reports: tuple[dict[str, Any], ...]

    @property
    def unlike(self) -> bool:
        """Whether they are of several models, so that what is lost in one says nothing of another."""
        return (
            len({r["options"]["source"].get("sha256") or m for r, m in zip(self.reports, self.models, strict=True)}) > 1
        )

    def to_dict(self) -> dict[str, Any]:
        """All but the reports."""
        return {
            "runs": [str(place) for place in self.places],
            "models": list(self.models),
            "options": {name: list(values) for name, values in self.options.items()},
            "figures": {figure.name: list(figure.values) for figure in self.figures},
            "layers": {
                name: [{"sqnr": sqnr, "bits": bits} for sqnr, bits in values] for name, values in self.layers.items()
            },
        }


def compared(places: Iterable[Path]) -> Compared:
    """Read the reports of runs.

    Raises UserError for fewer than two, or one of them twice, SourceError for what is no run or has no report.
    """
    paths = tuple(places)
    if len(paths) < 2:
        raise UserError("compare: two runs are the least; zaq compare RUN RUN ...")
    resolved = [p.resolve() for p in paths]
    if twice := [str(p) for i, p in enumerate(paths) if resolved[i] in resolved[:i]]:
        raise UserError(f"compare: {twice[0]} is named twice.")
    reports = tuple(map(_report, paths))
    names = _short(paths)
    models = tuple(str(r["options"]["source"].get("name")) for r in reports)
    return Compared(names, paths, models, _differing(reports), _figures(paths, reports), _layers(reports), reports)


def render(found: Compared, page: Path) -> str:
    """The page, and where it will lie: its links lead from there. What models, layers and folders are called stands in
    it as text."""
    heads = ["", *found.names]
    figures = [
        [figure.name, *({"text": f"{text} ★" if best else text, "value": value if isinstance(value, float) else text}
                        for text, best, value in zip(figure.texts(), figure.best(), figure.values, strict=True))]
        for figure in found.figures
    ]  # fmt: skip
    options = [[name, *values] for name, values in found.options.items()]
    layers = [
        [name, *map(_cell, values), round(_spread(values), 1)]
        for name, values in itertools.islice(found.layers.items(), LAYERS)
    ]
    template = environment().get_template("comparison.html.j2")
    return template.render(
        found=found, heads=heads, figures=figures, options=options, layers=layers, charts=_charts(found),
        reports=[Path(os.path.relpath(place / "report.html", page.parent)).as_posix() for place in found.places],
    )  # fmt: skip


def _report(path: Path) -> dict[str, Any]:
    if not (path / "report.json").is_file():
        raise SourceError(f"{path}: is no run of zaq quantize with a report (report.json missing).")
    try:
        report = plain_json(plain_text(path / "report.json"))
        if not isinstance(report, dict) or not isinstance(report["options"]["source"], dict):
            raise ValueError("it is of another form")
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path / 'report.json'}: is not what zaq quantize wrote ({error}).") from error
    return report


def _short(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """The folders' own names, or whole paths where these do not tell them apart."""
    names = tuple(p.resolve().name for p in paths)
    return names if len(set(names)) == len(names) else tuple(map(str, paths))


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Options in options by names with dots."""
    if isinstance(value, Mapping) and value:
        inner = [_flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
        return {k: v for part in inner for k, v in part.items()}
    return {name: "" if value is None or value == {} else str(value)}


def _differing(reports: tuple[dict[str, Any], ...]) -> dict[str, tuple[str, ...]]:
    every = [_flat(r["options"]) for r in reports]
    every = [{k: v for k, v in one.items() if not k.startswith(UNASKED)} for one in every]
    rows = {name: tuple(one.get(name, "") for one in every) for name in dict.fromkeys(k for one in every for k in one)}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _figures(paths: tuple[Path, ...], reports: tuple[dict[str, Any], ...]) -> list[Figure]:
    """What the reports say, and what `zaq eval` measured of the files that still lie there; rows that no run has are
    left out."""

    def each(name: str, of: Any, digits: int = 1, better: int = 0) -> Figure:
        return Figure(name, tuple(_number(of, report) for report in reports), digits, better)

    rows = [
        each("expected: float's answer, %", lambda r: 100 * r["estimate"]["run"]["agreement"], better=1),
        each("  90 % of the time, from", lambda r: 100 * r["estimate"]["run"]["low"]),
        each("  to", lambda r: 100 * r["estimate"]["run"]["high"]),
        *_measured(paths),
        each("same class on synthetic samples, %", lambda r: 100 * r["agreement"]["top1_agreement"], better=1),
        each("SQNR of the output, dB", lambda r: r["agreement"]["output_sqnr"], better=1),
        each("model.onnx, KB", lambda r: r["sizes"]["model.onnx"] / 1024, 0, -1),
        each(
            "times smaller than float weights", lambda r: r["sizes"]["float weights"] / r["sizes"]["model.onnx"], 1, 1
        ),
        each("times as fast as float", lambda r: r["speed"]["times"], 2, 1),
        each("milliseconds an image", lambda r: r["speed"]["ours"], 2, -1),
        each("energy a sample, uJ (estimate)", lambda r: _energy(r["deployment"]["files"]["model.onnx"]), 1, -1),
        each("minutes", lambda r: r["minutes"], 1, -1),
    ]
    return [row for row in rows if any(v is not None for v in row.values)]


def _energy(file: Mapping[str, Any]) -> float:
    return float(file["energy_macs"] + file["energy_sram"] + file["energy_dram"])


def _number(of: Any, report: Mapping[str, Any]) -> Value:
    """A number of a report; None where it says nothing, as one of an older zaq may."""
    try:
        found = float(of(report))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return found if math.isfinite(found) else None


def _measured(paths: tuple[Path, ...]) -> list[Figure]:
    """A row for each data set that `zaq eval` measured any of the runs on."""
    found: dict[str, dict[int, float]] = {}
    for number, path in enumerate(paths):
        for row in measurements(path):
            found.setdefault(f"{row['metric']}, {row['data']}{row['part']}", {})[number] = row["value"]
    return [
        Figure(name, tuple(values.get(i) for i in range(len(paths))), 2, 1) for name, values in sorted(found.items())
    ]


def measurements(path: Path) -> list[dict[str, Any]]:
    """What `zaq eval` found of the file that lies in a run: the metric that counts, its value, the data and its part.
    What is of another file, or cannot be read, is left out."""
    try:
        rows = Run(path).measured()
    except SourceError:
        return []
    return [
        {
            "metric": str(row["metric"]), "value": float(row["value"]), "data": str(row["data"]),
            "part": f", first {row['limit']}" if row.get("limit") else "",
        }
        for row in rows
    ]  # fmt: skip


def _layers(reports: tuple[dict[str, Any], ...]) -> dict[str, tuple[tuple[float | None, int | None], ...]]:
    every = [
        {f"{t['name']} ({t['kind']})": (t.get("sqnr"), t.get("bits")) for t in r.get("tensors", [])} for r in reports
    ]
    names = [n for n in dict.fromkeys(k for one in every for k in one) if sum(n in one for one in every) > 1]
    rows = {name: tuple(one.get(name, (None, None)) for one in every) for name in names}
    return dict(sorted(rows.items(), key=lambda item: -_spread(item[1])))


def _spread(values: Iterable[tuple[float | None, int | None]]) -> float:
    found = [sqnr for sqnr, _ in values if isinstance(sqnr, int | float)]
    return max(found) - min(found) if len(found) > 1 else 0.0


def _cell(value: tuple[float | None, int | None]) -> dict[str, Any]:
    sqnr, bits = value
    if not isinstance(sqnr, int | float):
        return {"text": f"- ({bits} bit)" if bits else "-", "value": -1000.0}
    drawn = bar(max(float(sqnr), 0.0), 60.0, f"{sqnr} dB at {bits} bits")
    return {"text": drawn + f"{sqnr:.1f} dB, {bits} bit", "value": float(sqnr)}


def _charts(found: Compared) -> list[Any]:
    """Where the time went, and what a kilobyte buys."""
    minutes = {
        name: {
            s["name"]: s["seconds"] / 60 for s in report.get("stages", []) if isinstance(s.get("seconds"), int | float)
        }
        or {"": float(report.get("minutes", 0.0))}
        for name, report in zip(found.names, found.reports, strict=True)
    }
    charts = [bars(minutes, "minutes", "min")]
    by_name = {figure.name: figure.values for figure in found.figures}
    judged = next((n for n in by_name if "," in n and n.split(",")[0] in JUDGED), None) or next(iter(by_name), None)
    sizes = by_name.get("model.onnx, KB")
    if judged and sizes:
        points = [
            Point(float(x), float(y), name, f"{name}: {y:.2f} at {x:.0f} KB", name)
            for name, x, y in zip(found.names, sizes, by_name[judged], strict=True)
            if isinstance(x, float) and isinstance(y, float)
        ]
        charts += [scatter(points, f"{judged} over size", "KB", judged)] if len(points) > 1 else []
    return charts


JUDGED = ("top1", "map50", "miou", "psnr")  # metrics that `zaq eval` leaves
