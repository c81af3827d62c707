"""Charts: what is drawn stands where the numbers say, and what they are handed as text stays text."""

import itertools
import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from zaq.report.charts import Point, bar, bars, histogram, lines, scatter

HOSTILE = '"><script>alert(1)</script>'


def numbers(chart: Markup, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, chart)]


def test_a_curve_goes_through_its_points_and_its_borders_are_there() -> None:
    chart = lines({"loss": [(0, 4.0), (5, 2.0), (10, 0.0)]}, "a stage", "step", borders={"block 2": 5})
    path = [float(v) for v in re.findall(r"[\d.]+", re.findall(r'd="M([^"]+)"', chart)[0])]
    assert path[2:4] == [50, 50] and path[0] + path[4] == pytest.approx(100) and path[1] < path[3] < path[5]
    assert numbers(chart, r'line x1="([\d.]+)%"[^>]*class="mark"') == [50] and "block 2" in chart


def test_a_long_curve_is_thinned_by_means_and_what_is_no_number_is_left_out() -> None:
    chart = lines({"loss": [(i, 1.0 if i % 2 else float("nan")) for i in range(100)]}, "a stage")
    assert "nan" not in chart.lower() and len(re.findall(r"<circle", chart)) <= 40
    wave = lines({"loss": [(i, float(i % 4)) for i in range(6400)]}, "a stage")
    (path,) = re.findall(r'd="M([^"]+)"', wave)
    assert path.count("L") == 159 and len({p.split()[1] for p in path.split("L")}) == 1  # each point is a mean of 40


def test_a_logarithmic_axis_has_equal_steps_a_decade() -> None:
    chart = scatter([Point(10.0**i, i) for i in range(5)], "sizes", log=True)
    at = numbers(chart, r'cx="([\d.]+)%"')
    assert [b - a for a, b in itertools.pairwise(at)] == pytest.approx([at[1] - at[0]] * 4, abs=0.02)
    assert re.findall(r'text-anchor="middle">([^<]+)', chart) == ["1", "10", "100", "1000", "10000"]


def test_the_best_is_ringed_a_level_is_drawn_and_series_have_colours() -> None:
    points = [Point(1, 1, "a", "first"), Point(2, 3, "b", "second", "w4a4", best=True)]
    chart = scatter(points, "accuracy", "minutes", "top-1", level={"float": 4.0})
    assert chart.count(" best") == 1 and 'class="c0"' in chart and 'class="c1 best"' in chart
    assert "float: 4" in chart and ">w4a4<" in chart and "<title>second</title>" in chart
    (top,) = numbers(chart, r'y1="([\d.]+)%" y2="[\d.]+%" class="mark"')
    assert top < min(numbers(chart, r'cy="([\d.]+)%"'))


def test_bars_lie_one_behind_the_other_and_sum() -> None:
    chart = bars({"float": {"weights": 6, "graph": 2}, "w4a4": {"weights": 1, "graph": 1}}, "size", "KB")
    assert numbers(chart, r'x="([\d.]+)%" y="[\d.]+" width') == [0, 75, 0, 12.5]
    assert numbers(chart, r'width="([\d.]+)%"') == [75, 25, 12.5, 12.5] and ">8 KB<" in chart
    assert (
        'width="25.00%"' in bar(1, 4, "a") and 'width="100.00%"' in bar(9, 4, "a") and 'width="0.00%"' in bar(1, 0, "a")
    )


def test_what_a_grid_cuts_off_has_another_colour() -> None:
    chart = histogram([1, 4, 4, 0, 9], -2.5, 2.5, "weights", clip=(-1, 1))
    inside, outside = (re.findall(rf'class="{kind}" d="([^"]*)"', chart)[0] for kind in ("c2", "c6"))
    assert re.findall(r"M(\d) 31v-([\d.]+)", outside) == [("0", "10.0"), ("4", "30.0")]
    assert re.findall(r"M(\d) 31v-([\d.]+)", inside) == [("1", "20.0"), ("2", "20.0")]


def test_text_stays_text_and_the_markup_is_well_formed() -> None:
    charts = [
        lines({HOSTILE: [(0, 1), (1, 2)], "b": [(0, 1)]}, HOSTILE, HOSTILE, HOSTILE, borders={HOSTILE: 0.5}),
        scatter([Point(1, 1, HOSTILE, HOSTILE, HOSTILE), Point(1, 1, "b")], HOSTILE, level={HOSTILE: 1}),
        bars({HOSTILE: {HOSTILE: 1, "b": 2}}, HOSTILE, HOSTILE),
        bar(1, 2, HOSTILE),
        histogram([1, 2], 0, 1, HOSTILE),
        lines({}, "nothing"), scatter([], "nothing"), bars({}, "nothing"), histogram([], 0, 0, "nothing"),
        lines({"same": [(1, 0.0), (1, 0.0)]}, "one point", log=True),
    ]  # fmt: skip
    for chart in charts:
        assert "<script" not in chart
        ElementTree.fromstring(f"<div>{chart}</div>")
