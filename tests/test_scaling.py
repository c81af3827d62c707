"""`benchmarks/scaling.py`: a run in a process of its own has a cost, and exponents are those of powers."""

from pathlib import Path
from types import ModuleType

import pytest
from conftest import benchmark_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark_script("scaling")


def test_a_run_costs_time_and_memory(script: ModuleType, tmp_path: Path) -> None:
    row = script.run(script.toy("depth", 8, "--method", "rtn", depth=8, width=4), "fast", tmp_path / "log")
    assert not row.failure, (tmp_path / "log").read_text()
    assert 100 < row.peak_mb < 10_000 and 0.5 < row.cpu_seconds < 600 and row.at == "8"


def test_a_run_that_fails_says_why(script: ModuleType, tmp_path: Path) -> None:
    row = script.run(script.whole("none", "zoo:resnet21_cifar10"), "fast", tmp_path / "log")
    assert row.failure.startswith("ended with 2") and "resnet20_cifar10" in row.failure


def test_exponents_are_those_of_powers(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "OUT", tmp_path / "out")
    rows = [script.Row("width", str(w), "fast", 1.0, 3.0 * w**1.5, 40 * w, "", "v") for w in (8, 64, 16)]
    rows.append(script.Row("networks", "ViT-B/16, w8a8", "fast", 1.0, 2.0, 3, "", "v"))
    rows.append(script.Row("depth", "20", "fast", 1.0, 2.0, 3, 'ended with 2: ["zaq: a, b"]', "v"))
    script.write(rows)
    assert script.read() == rows
    (group,) = script.grown(rows).values()
    assert [r.at for r in group] == ["8", "16", "64"]
    assert script.exponent(group, "cpu_seconds") == pytest.approx(1.5)
    assert "| fast | width | 8, 64 | 1.50 | 1.00 |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "results.svg").read_text().count("<svg") == 1
