"""Charts as SVG, a function each. What they are handed is data; what comes back is markup with every text escaped.

Coordinates are percent of the width, so that a chart is as wide as its page and its text is as large on a phone; curves
lie in a square of their own that is stretched. A `<title>` says what is pointed at. `templates/style.css` has the look.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Point", "bar", "bars", "histogram", "lines", "scatter"]

COLORS = 8  # that the style has
SHOWN = 160  # points of a curve; of more, neighbours are put together by their mean
HINTS = 40  # of a curve's points that can be pointed at
HEIGHT = 230  # pixels
ROW = 26  # pixels of a row of bars
CHARACTERS = 60  # of a name


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot: `series` is told by its colour, `title` when it is pointed at, `label` beside it."""

    x: float
    y: float
    series: str = ""
    title: str = ""
    label: str = ""
    best: bool = False


@dataclass(frozen=True)
class _Axis:
    """From values to percent of an axis."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], log: bool = False, zero: bool = False) -> "_Axis":
        """An axis that all finite values lie on, with 0 where `zero` asks for it; a logarithmic one wants them > 0."""
        found = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = min(found), max(found)
        if log:
            return cls(low / 1.2, high * 1.2, True)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
        return cls(low if zero and low == 0 else low - room, high if zero and high == 0 else high + room)

    def at(self, value: float) -> float:
        """Percent from the low end."""
        if self.log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / (self.high - self.low)

    def holds(self, value: float) -> bool:
        """Whether the value can be drawn."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self) -> list[float]:
        """Three to six round values."""
        if self.log and self.high / self.low > 30:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            every = -(-len(decades) // 6)
            return [10.0**d for d in decades[::every]]
        rough = (self.high - self.low) / 4
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [step * i for i in range(first, last + 1) if self.holds(step * i)]


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    x: str = "",
    y: str = "",
    *,
    log: bool = False,
    borders: Mapping[str, float] | None = None,
    points: bool = False,
) -> Markup:
    """A curve a series: its points (x, y) in order. `borders`: x of dashed lines across, by what begins there.

    `log`: a logarithmic y. `points`: dots at the points, for few of them.
    """
    found = {name: _thinned(curve) for name, curve in series.items() if curve}
    across = _Axis.over([p[0] for curve in found.values() for p in curve] + list((borders or {}).values()))
    up = _Axis.over((p[1] for curve in found.values() for p in curve), log)
    inside = Markup().join(
        _hinted("line", name, x1=_percent(across.at(at)), x2=_percent(across.at(at)), y1="0", y2="100%", class_="mark")
        for name, at in (borders or {}).items()
    )
    for number, (name, curve) in enumerate(found.items()):
        drawn = [(across.at(a), 100 - up.at(b), a, b) for a, b in curve if up.holds(b)]
        path = "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b, *_ in drawn) if drawn else ""
        inside += Markup('<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%" class="{}">'
                         '<path d="{}"/></svg>').format(_color(number), path)  # fmt: skip
        for a, b, at, value in drawn[:: -(-len(drawn) // HINTS) or 1]:
            kind = f"{_color(number)}{'' if points or len(drawn) == 1 else ' quiet'}"
            told = f"{name}: {_number(value)}\n{x} {_number(at)}"
            inside += _hinted("circle", told, cx=_percent(a), cy=_percent(b), r="4", class_=kind)
    return _figure(title, _keys(found), _plot(inside, across, up, x, y))


def scatter(
    points: Sequence[Point],
    title: str,
    x: str = "",
    y: str = "",
    *,
    log: bool = False,
    level: Mapping[str, float] | None = None,
) -> Markup:
    """A dot a point, coloured by its series; the best ones are ringed. `log`: a logarithmic x. `level`: values of y
    drawn across, by name. Later points lie above earlier ones; dots let each other through.
    """
    names = list(dict.fromkeys(p.series for p in points))
    across = _Axis.over((p.x for p in points), log)
    up = _Axis.over([*(p.y for p in points), *(level or {}).values()])
    inside = Markup()
    for name, value in (level or {}).items():
        at = _percent(100 - up.at(value))
        inside += _hinted("line", f"{name}: {_number(value)}", x1="0", x2="100%", y1=at, y2=at, class_="mark")
        inside += Markup('<text x="100%" y="{}" dy="-5" text-anchor="end">{}</text>').format(at, _short(name))
    for point in (p for p in points if across.holds(p.x) and up.holds(p.y)):
        left, top = across.at(point.x), 100 - up.at(point.y)
        kind = _color(names.index(point.series)) + (" best" if point.best else "")
        told = point.title or f"{point.series}\n{_number(point.x)}, {_number(point.y)}"
        dot = {"cx": _percent(left), "cy": _percent(top), "r": "6", "fill-opacity": "0.75", "class_": kind}
        inside += _hinted("circle", told, **dot)
        if point.label:
            ends, away = ("end", -9) if left > 80 else ("start", 9)
            inside += Markup('<text x="{}" y="{}" dx="{}" dy="4" text-anchor="{}">{}</text>').format(
                _percent(left), _percent(top), away, ends, _short(point.label)
            )
    return _figure(title, _keys(names), _plot(inside, across, up, x, y))


def bars(rows: Mapping[str, Mapping[str, float]], title: str, unit: str = "") -> Markup:
    """A row a name, its parts (0 or more each) one behind the other; the sum at its end, the name above it."""
    names = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    most = max((sum(parts.values()) for parts in rows.values()), default=0) or 1.0
    inside = Markup()
    for row, (name, parts) in enumerate(rows.items()):
        left, top, total = 0.0, row * (ROW + 14), sum(parts.values())
        inside += Markup('<text class="label" x="0" y="{}">{}</text>').format(top + 12, _short(name))
        told = f"{_number(total)} {unit}".strip()
        inside += Markup('<text x="100%" y="{}" text-anchor="end">{}</text>').format(top + 12, told)
        for part, value in parts.items():
            wide = 100 * value / most
            hint = f"{name}\n{part + ': ' if part else ''}{_number(value)} {unit}".strip()
            box = {"x": _percent(left), "y": str(top + 18), "width": _percent(wide), "height": "12"}
            inside += _hinted("rect", hint, **box, class_=_color(names.index(part)))
            left += wide
    height = len(rows) * (ROW + 14)
    drawn = Markup('<svg height="{}" role="img">{}</svg>').format(height, inside)
    return _figure(title, _keys(names), drawn)


def bar(value: float, most: float, title: str, color: int = 0) -> Markup:
    """One bar for a cell of a table, as long as `value` (0 or more) is a part of `most`."""
    wide = 100 * min(max(value / most, 0), 1) if most > 0 else 0
    box = {"width": _percent(wide), "height": "12", "rx": "2"}
    return Markup('<svg height="12">{}</svg>').format(_hinted("rect", title, **box, class_=_color(color)))


def histogram(
    counts: Sequence[float], low: float, high: float, title: str, clip: tuple[float, float] | None = None
) -> Markup:
    """Counts of values in equal bins from `low` to `high`, for a cell of a table. Bins that lie outside of `clip`, the
    first and the last value of a grid, have the colour of a warning. Heights are square roots, so that tails are seen.
    """
    most, size = max(counts, default=0) or 1, (high - low) / max(len(counts), 1)
    paths = {"c2": "", "c6": ""}
    for i, count in enumerate(counts):
        middle, tall = low + (i + 0.5) * size, 30 * math.sqrt(count / most)
        out = clip is not None and not clip[0] - size / 2 <= middle <= clip[1] + size / 2
        if tall:
            paths["c6" if out else "c2"] += f"M{i} 31v-{max(tall, 1.5):.1f}h.9V31z"
    inside = Markup().join(Markup('<path class="{}" d="{}"/>').format(kind, path) for kind, path in paths.items())
    return Markup('<svg class="histogram" height="31" viewBox="0 0 {} 31" preserveAspectRatio="none"><g>'
                  '<title>{}</title>'
                  '<rect width="100%" height="31" fill-opacity="0"/>{}</g></svg>').format(
        max(len(counts), 1), title, inside
    )  # fmt: skip


def _figure(title: str, keys: Markup, drawn: Markup) -> Markup:
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}{}</figure>').format(title, keys, drawn)


def _plot(inside: Markup, across: _Axis, up: _Axis, x: str, y: str) -> Markup:
    """The frame of a plot around what is drawn inside: lines of the grid, their values, the names of the axes."""
    frame = Markup()
    for value in up.ticks():
        at = _percent(100 - up.at(value))
        frame += Markup('<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(at)
        frame += Markup('<text x="-8" y="{}" dy="4" text-anchor="end">{}</text>').format(at, _number(value))
    for value in across.ticks():
        frame += Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _percent(across.at(value)), HEIGHT + 17, _number(value)
        )
    frame += Markup('<text x="100%" y="{}" text-anchor="end">{}</text>').format(HEIGHT + 34, x)
    above = Markup('<div class="keys">{}</div>').format(y) if y else Markup()
    body = Markup('<svg height="{}" role="img">{}{}</svg>').format(HEIGHT, frame, inside)
    return above + Markup('<div class="frame">{}</div>').format(body)


def _keys(names: Iterable[str]) -> Markup:
    """What the colours mean; nothing where there is one only."""
    named = [name for name in names if name]
    if len(named) < 2:
        return Markup()
    found = Markup().join(
        Markup('<span><i class="{}"></i>{}</span>').format(_color(i), _short(name)) for i, name in enumerate(named)
    )
    return Markup('<div class="keys">{}</div>').format(found)


def _hinted(tag: str, title: str, class_: str, **attributes: str) -> Markup:
    """An element with a title, which a browser shows when it is pointed at."""
    told = Markup(" ").join(Markup('{}="{}"').format(name, value) for name, value in attributes.items())
    return Markup('<{0} {1} class="{2}"><title>{3}</title></{0}>').format(tag, told, class_, title)


def _thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most SHOWN points, all of them finite: of more, the means of neighbours."""
    curve = [point for point in curve if all(map(math.isfinite, point))]
    size = -(-len(curve) // SHOWN) or 1
    groups = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups]


def _color(number: int) -> str:
    return f"c{number % COLORS}"


def _percent(value: float) -> str:
    return f"{value:.2f}%"


def _number(value: float) -> str:
    """As short as it can be read: 1200, 0.0312, 2e-07."""
    return f"{value:.0f}" if abs(value) >= 1000 and abs(value) < 1e6 else f"{value:.3g}"


def _short(name: str) -> Markup:
    return escape(name if len(name) <= CHARACTERS else name[: CHARACTERS - 1] + "…")
