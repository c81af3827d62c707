"""The first lines of a run and its last: what is going to happen, and what came out of it."""

from pathlib import Path

import pytest
from click.testing import Result
from conftest import zaq_here

FAST = ("--bits", "w4a4", "--method", "rtn")


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("told") / "out"
    found = zaq_here("quantize", model, *FAST, "-v", "-o", folder)
    assert found.exit_code == 0, found.output
    return found


def test_the_header_says_what_will_happen(done: Result) -> None:
    first, *others = done.stderr.splitlines()
    assert "net.pt2 to w4a4 by rtn, effort default, device auto, into " in first and first.endswith("/out/")
    said = "\n".join(others)
    assert "1 stage: calibrate" in said and "1 of 1, calibrate, " in said and "saving and verifying" in said


def test_the_last_lines_are_a_verdict_and_what_follows(done: Result) -> None:
    lines = [line for line in done.stdout.splitlines() if not line.startswith("--optimize latency")]  # where it is slow
    smaller, speed, expected, *follow = lines[-5:]
    assert " times as fast as the float network in onnxruntime here: " in speed
    assert " times smaller than the " in smaller and smaller.endswith("KB of float weights")
    assert expected.startswith("expected on real images like its training ones: no figure, as it is calibrated for ")
    assert "zaq eval " in follow[0] and "zaq predict " in follow[1]


def test_quiet_says_what_came_out_alone(model: Path, tmp_path: Path) -> None:
    found = zaq_here("quantize", model, *FAST, "-q", "-o", tmp_path / "out")
    assert found.exit_code == 0 and not found.stderr and "times smaller" in found.stdout
