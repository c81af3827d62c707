"""The estimate for real images: it follows what it is made from, and is silent where nothing like it was measured."""

import copy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import benchmark_script
from zoo import CARD, state_of, traced

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.methods.rtn import RTN
from zaq.report import estimate
from zaq.report.estimate import CALIBRATION, calibration, estimates, predicted

ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "estimate" / "rows.csv"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    if not ROWS.is_file():
        pytest.skip("an installed package has no benchmarks beside it")
    found: list[dict[str, Any]] = benchmark_script("estimate").read_rows(ROWS)
    return found


@pytest.fixture(scope="module")
def rounded() -> State:
    """A toy, rounded to four bits."""
    state = state_of("residual", "w4a4", search=False)
    run_stages(RTN().plan(state.task), state, Journal())
    return state


def test_more_agreement_on_drawn_images_is_more_on_real_ones(rows: list[dict[str, Any]]) -> None:
    middle = sorted(rows, key=lambda row: row["agreement"])[len(rows) // 2]
    low, high = calibration()["ranges"]["agreement"]
    told = [predicted(middle | {"agreement": low + part * (high - low)}) for part in (0.0, 0.5, 1.0)]
    figures = [one.agreement for one in told if one is not None]
    assert len(figures) == 3 and figures == sorted(figures)
    assert all(0 <= one.low < one.agreement < one.high <= 1 for one in told if one is not None)


def test_most_of_what_was_measured_lies_in_its_interval(rows: list[dict[str, Any]]) -> None:
    found = [(predicted(row), row["real"]) for row in rows]
    inside = [one.low <= real <= one.high for one, real in found if one is not None]
    assert len(inside) == len(rows) and sum(inside) >= 0.85 * len(inside)


def test_what_is_unlike_all_that_was_measured_has_no_figure(rows: list[dict[str, Any]]) -> None:
    assert predicted(rows[0]) is not None and predicted(rows[0] | {"confidence": 0.01}) is None


def test_the_file_is_what_the_script_makes_of_the_rows(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    script = benchmark_script("estimate")
    done = CliRunner().invoke(script.main, ["fit", "-o", str(tmp_path / "e.json"), "--plot", str(tmp_path / "e.png")])
    assert done.exit_code == 0, done.output
    made, there = (script.json.loads(path.read_text()) for path in (tmp_path / "e.json", CALIBRATION))
    assert made["weights"] == pytest.approx(there["weights"]) and made["margin"] == pytest.approx(there["margin"])
    assert {k: made[k] for k in ("ranges", "classes", "rows")} == {k: there[k] for k in ("ranges", "classes", "rows")}
    assert (tmp_path / "e.png").stat().st_size > 1000


def test_a_network_of_another_kind_has_a_reason_in_place_of_a_figure(
    rounded: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = estimates(traced("residual"), rounded)
    assert (
        found["run"] is None and found["rounding"] is None and "10 to 100 classes, and there are 5" in found["sentence"]
    )
    monkeypatch.setattr(estimate, "calibration", lambda: calibration() | {"classes": [2, 10]})
    assert estimates(traced("residual"), rounded)["why"] == "it is calibrated for 32 pixels a side, and there are 16"
    assert "classifiers alone" in estimates(traced("transposed"), state_of("transposed"))["why"]


def test_a_run_and_plain_rounding_stand_beside_each_other(rounded: State, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = copy.deepcopy(calibration()) | {"classes": [2, 10], "side": [16, 32]}
    wide["ranges"] = {name: [-1e9, 1e9] for name in wide["ranges"]}
    monkeypatch.setattr(estimate, "calibration", lambda: wide)
    found = estimates(traced("residual"), rounded)
    assert found["run"] == pytest.approx(found["rounding"])  # which is what the run was
    assert "the float network's answer on " in found["sentence"] and "; by plain rounding " in found["sentence"]
    assert found["run"]["low"] < found["run"]["agreement"] < found["run"]["high"] and not found["why"]
    assert rounded.task.card.input == CARD.input
