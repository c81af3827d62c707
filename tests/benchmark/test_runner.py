"""Cell after cell, by processes that share a folder, die, and come back. What is run here is a stand-in for zaq."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from zaq.benchmark import cells as running
from zaq.benchmark import page
from zaq.benchmark.cells import Folder, finish, locked
from zaq.benchmark.plan import Cell
from zaq.benchmark.runner import run_cells, write_tables
from zaq.errors import Interrupted, SourceError

CELLS = [Cell("net.pt2", "net", "hash", "cifar10:/data", "w4a4", "zaq", "zaq", seed=s) for s in range(4)]
MEASURED = {
    "float_top1": 90.0,
    "onnx_top1": 88.0,
    "fake_quant_top1": 88.5,
    "drop": 2.0,
    "interval": 1.0,
    "agreement": 95.0,
    "file_kb": 300.0,
    "images": 100,
}
# Says in a log that it ran, which seed, and leaves a file and a report as zaq does. argv: -c, then what Cell.command
# says.
ZAQ = """
import pathlib, sys, time
out, seed = pathlib.Path(sys.argv[-1]), sys.argv[sys.argv.index("--seed") + 1]
with open("{log}", "a") as log:
    log.write(seed + "\\n")
time.sleep({seconds})
if seed in {fail}:
    sys.exit("zaq: seed " + seed + " is unlucky")
out.mkdir(exist_ok=True)
(out / "model.onnx").write_text("x")
(out / "report.json").write_text("x")
"""
# The same in a process of its own: python -c PROCESS folder code
PROCESS = """
import sys, pathlib
sys.path.insert(0, {tests!r})
import test_runner as t
t.running.ZAQ = (sys.executable, "-c", sys.argv[2])
try:
    t.run_cells(t.Folder.create(pathlib.Path(sys.argv[1])), t.CELLS, lambda cell, run: t.MEASURED)
except t.Interrupted as error:
    print(error)
"""


def stand_in(folder: Path, seconds: float = 0, fail: tuple[str, ...] = ()) -> str:
    return ZAQ.format(log=folder.parent / "log", seconds=seconds, fail=fail)


def ran(folder: Path) -> list[str]:
    log = folder.parent / "log"
    return log.read_text().split() if log.is_file() else []


def start(folder: Path, code: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROCESS.format(tests=str(Path(__file__).parent)), str(folder), code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.create(tmp_path / "out")


def run(folder: Folder, monkeypatch: pytest.MonkeyPatch, code: str, cells: list[Cell], **flags: Any) -> list[str]:
    monkeypatch.setattr(running, "ZAQ", (sys.executable, "-c", code))
    monkeypatch.setattr(page, "render", lambda rows, about: f"{len(rows)} {about}")  # half a second of plots a cell
    said: list[str] = []
    run_cells(folder, cells, lambda cell, run: MEASURED, say=said.append, **flags)
    return said


def test_two_processes_share_the_cells_and_run_each_once(folder: Folder) -> None:
    code = stand_in(folder.path, seconds=0.2)
    both = [start(folder.path, code) for _ in range(2)]
    lines = [p.communicate(timeout=120)[0].splitlines() for p in both]
    assert sorted(ran(folder.path)) == [str(s) for s in range(4)]
    assert all(lines) and sum(map(len, lines)) == 4  # neither did all of them
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    assert "88.00 ± 0.00 (4)" in (folder / "results.md").read_text()


def test_a_killed_process_goes_on_where_it_was(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(folder.path, stand_in(folder.path, seconds=1))
    wait_for(lambda: len(ran(folder.path)) == 2)
    process.kill()  # with one cell finished, and the second half-way
    process.communicate()
    with locked(folder / "cells" / CELLS[1].id / "claim", wait=False) as free:
        assert free
    assert len(folder.rows()) == 1
    run(folder, monkeypatch, stand_in(folder.path), CELLS)
    assert sorted(ran(folder.path)) == sorted([*(str(s) for s in range(4)), "1"])
    assert len(folder.rows()) == 4 and not folder.open_cells(CELLS)


def test_a_cell_that_was_broken_off_goes_on_from_its_snapshots(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in refuses to resume seed 1, as another version's snapshots are refused: that cell begins anew."""
    for cell in CELLS[:2]:
        (folder / "cells" / cell.id / "run.partial" / "snapshots").mkdir(parents=True)
        (folder / "cells" / cell.id / "run.partial" / "snapshots" / "one").write_text("")
    resuming = """
if "--resume" in sys.argv and seed == "1":
    sys.exit(2)
(out / "report.json").write_text('{"minutes": %d}' % (7 if "--resume" in sys.argv else 0))
"""
    run(folder, monkeypatch, stand_in(folder.path) + resuming, CELLS[:3])
    rows = folder.results(CELLS[:3])
    assert [row["error"] for row in rows] == ["", "", ""]
    assert rows[0]["minutes"] == 7 and rows[1]["minutes"] < 1 and rows[2]["minutes"] < 1
    assert ran(folder.path) == ["0", "1", "1", "2"]
    assert not (folder / "cells" / CELLS[1].id / "run.partial").exists()


@pytest.mark.parametrize("text", ["", '{"error": ""', "[" * 100_000, "[]", "{}"])
def test_a_result_that_broke_off_is_run_again(text: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, monkeypatch, stand_in(folder.path), CELLS)
    folder.result(CELLS[2]).write_text(text)
    assert len(folder.rows()) == 3 and folder.open_cells(CELLS) == [CELLS[2]]
    run(folder, monkeypatch, stand_in(folder.path), CELLS)
    assert sorted(ran(folder.path)) == sorted([*(str(s) for s in range(4)), "2"])
    assert len(folder.results(CELLS)) == 4


def test_ctrl_c_ends_the_cell_and_writes_the_tables(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        wait_for(lambda: len(ran(folder.path)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="interrupted with 3 of 4 cells open; the same command goes on") as caught:
        run(folder, monkeypatch, stand_in(folder.path, seconds=1), CELLS)
    assert caught.value.exit_code == 130
    with folder.claim(CELLS[1]) as free:
        assert free
    time.sleep(1.2)  # the cell that was running would have left its report by now
    assert not list((folder / "cells" / CELLS[1].id).glob("run/*"))
    assert len((folder / "results.csv").read_text().splitlines()) == 2 and (folder / "index.html").is_file()


def test_a_cell_that_fails_is_a_row_and_is_run_again_only_when_told(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = stand_in(folder.path, fail=("1",))
    said = run(folder, monkeypatch, code, CELLS[:3])
    assert "seed 1: failed: exit code 1: zaq: seed 1 is unlucky [1 left" in said[1] and len(said) == 3
    assert [r["error"] for r in folder.results(CELLS[:3])] == ["", "exit code 1: zaq: seed 1 is unlucky", ""]
    assert "(2), 1 failed" in (folder / "results.md").read_text()
    assert run(folder, monkeypatch, code, CELLS[:3]) == []
    assert len(run(folder, monkeypatch, code, CELLS[:3], retry=True)) == 1  # failing again is no reason to go round
    assert len(run(folder, monkeypatch, stand_in(folder.path), CELLS[:3], retry=True)) == 1
    assert ran(folder.path) == ["0", "1", "2", "1", "1"] and not any(r["error"] for r in folder.rows())


def test_a_cell_that_takes_too_long_or_cannot_be_measured(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(folder, monkeypatch, stand_in(folder.path, seconds=60), CELLS[:1], timeout=0.5)
    assert "stopped after 0.5 seconds (--timeout)" in said[0]
    monkeypatch.setattr(running, "ZAQ", (sys.executable, "-c", stand_in(folder.path)))

    def unreadable(cell: Cell, run: Path) -> dict[str, Any]:
        raise SourceError(f"{run}: broken")

    with folder.claim(CELLS[1]):
        assert finish(CELLS[1], folder, unreadable)["error"].startswith("measuring: ")
    assert write_tables(folder) == 2


def test_what_is_left_of_a_run(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, monkeypatch, stand_in(folder.path), CELLS[:1])
    run(folder, monkeypatch, stand_in(folder.path), CELLS[1:2], keep=True)
    left = [{p.name for p in (folder / "cells" / c.id / "run").iterdir()} for c in CELLS[:2]]
    assert left == [{"report.json"}, {"report.json", "model.onnx"}]
    row = json.loads(folder.result(CELLS[0]).read_text())
    assert row["minutes"] > 0 and 5 < row["peak_mb"] < 100 and "zaq" in row and row["onnx_top1"] == 88


def test_a_held_cell_is_left_to_who_holds_it(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder.claim(CELLS[0]) as ours, folder.claim(CELLS[0]) as again:
        assert ours and not again
        run(folder, monkeypatch, stand_in(folder.path), CELLS[:2])
    assert ran(folder.path) == ["1"] and folder.open_cells(CELLS[:2]) == CELLS[:1]


def test_ids_keep_display_names_apart() -> None:
    assert dataclasses.replace(CELLS[0], name="other").id != CELLS[0].id
