"""What is said of a run while it lasts: every stage by its number, bars that reach their end, and nothing if asked."""

import io
import re

import pytest
from rich.console import Console
from zoo import CARD, quantized_net

from zaq.engine.progress import LineProgress, Planned, Progress, TerminalProgress, expected
from zaq.methods.flagship import Flagship

SHORT = Flagship(synthesis=2, refine=1, images=64, reconstruct=1, polish=2, game=1)
PLAN = [Planned("draw", 3.0), Planned("refine", 1.0), Planned("learn", 1.0)]


@pytest.fixture(scope="module")
def told() -> str:
    """What a run of a toy says, line by line."""
    lines: list[str] = []
    progress = LineProgress(detailed=True)
    progress.line = lines.append  # type: ignore[method-assign]
    quantized_net("residual", "w4a4", SHORT, card=CARD, progress=progress)
    return "\n".join(lines)


def test_every_stage_that_was_planned_comes_in_its_order(told: str) -> None:
    count, names = re.findall(r"^\[0:\d\d\] (\d+) stages: (.*)$", told, re.MULTILINE)[0]
    found = re.findall(r"^\[\d+:\d\d\] (\d+) of (\d+), (.*), \d+ steps?$", told, re.MULTILINE)
    assert [name for _, _, name in found] == names.split(", ")
    assert [int(number) for number, _, _ in found] == list(range(1, int(count) + 1)) and {n for _, n, _ in found} == {
        count
    }
    assert {"synthesis", "reconstruct", "zaq"} <= set(names.split(", "))


def test_how_long_it_may_take_is_said_before_it_begins(told: str) -> None:
    lines = told.splitlines()
    (place,) = [i for i, line in enumerate(lines) if "expected: about " in line]
    assert re.search(r"expected: about \d+\.\d min, and the file behind it$", lines[place])
    assert " stages: " in lines[place - 1] and "1 of " in lines[place + 1]


def test_an_expectation_is_the_sum_over_the_stages() -> None:
    assert expected([Planned("a", 1.0, 60.0), Planned("b", 2.0, 120.0)]) == "expected: about 3.0 min"
    assert expected(PLAN) == ""  # nobody knows


def test_details_say_what_a_stage_was_worth(told: str) -> None:
    assert re.search(r"reconstruct: \d+ steps, held-out loss [\d.]+ to [\d.]+", told)


def test_what_is_left_out_is_passed_over_and_what_comes_unforeseen_counts(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    with progress.over(lambda: PLAN):
        for name in ("draw", "learn", "more"):
            list(progress.track(name, 2))
        progress.detail("not asked for")
    list(progress.track("eval", 1))
    said = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "3 stages: draw, refine, learn", "1 of 3, draw, 2 steps", "3 of 3, learn, 2 steps", "4 of 4, more, 2 steps",
        "eval, 1 step",
    ]  # fmt: skip


def test_silence_plans_nothing() -> None:
    def never() -> list[Planned]:
        raise AssertionError("nobody is told")

    with Progress().over(never):
        assert list(Progress().track("draw", 2)) == [0, 1]


@pytest.mark.parametrize("whole", [True, False])
def test_bars_reach_their_end_where_the_run_does(whole: bool) -> None:
    progress = TerminalProgress()
    progress.console = progress.bars.live.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.over(lambda: PLAN):
        for i, planned in enumerate(PLAN):
            steps = progress.track(planned.name, 4)
            for step in steps:
                if not whole and planned.name == "learn" and step == 2:
                    steps.close()  # type: ignore[attr-defined]  # as where Ctrl-C ends a stage
            shown = {task.description: task for task in progress.bars.tasks}
            done = shown["all of it"].completed
            assert done == pytest.approx([0.6, 0.8, 1.0 if whole else 0.9][i]), shown
        if whole:
            progress.finished()
        assert shown["2 of 3, refine"].finished and ("min left" in str(shown["all of it"].fields["told"])) != whole
    assert not progress.bars.tasks and not progress.bars.live.is_started
