"""The folder of a benchmark: a cell's claim, its run in a process of its own, its result. Several processes may share
it.

cells/<id>/claim         locked by the process that runs the cell; the kernel frees it if that dies
cells/<id>/result.json   its row, moved into place when the cell is finished
cells/<id>/stderr.txt    what zaq quantize had to say, where it failed
cells/<id>/run/          what zaq quantize wrote; only its report is left of it, unless --keep
cells/<id>/run.partial/  a run that was broken off; the next process that claims the cell goes on with it
teachers/                the float models' predictions
jobs/                    what submitit writes (`cluster.py`)
"""

import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import zaq
from zaq.benchmark.plan import Cell
from zaq.benchmark.table import whole
from zaq.config.bounds import json_text, plain_json, plain_text
from zaq.errors import OutputError, SourceError
from zaq.run import SNAPSHOTS, beside, disk_errors, write_file

__all__ = ["CellJob", "Folder", "finish", "locked", "record", "version"]

ZAQ = (sys.executable, "-m", "zaq")
REFUSED = 2  # the exit code of a call that has to change
LAUNCH = Path(__file__).with_name("launch.py")
Measure = Callable[[Cell, Path], dict[str, Any]]  # a cell and its run folder -> the measured part of its row


@dataclass(frozen=True)
class Folder:
    """Where a benchmark lies on disk."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> "Folder":
        """Raises OutputError if the path cannot become a folder."""
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path}: is a file; -o names a folder.")
        with disk_errors(path):
            (path / "cells").mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """Raises SourceError if no benchmark has ever been there."""
        if not (path / "cells").is_dir():
            raise SourceError(f"{path}: is no folder of zaq benchmark (it has no cells/).")
        return cls(path)

    def describe(self, command: str, plan: str | None) -> None:
        """Keep what was asked for, for the page."""
        write_file(self / "benchmark.json", json_text({"command": command, "plan": plan}, indent=1) + "\n")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def rows(self) -> list[dict[str, Any]]:
        """Every finished cell, whoever ran it."""
        return [row for p in sorted((self / "cells").glob("*/result.json")) if (row := _row(p)) is not None]

    def results(self, cells: list[Cell]) -> list[dict[str, Any]]:
        """The rows of those of the cells that are finished."""
        return [row for c in cells if (row := _row(self.result(c))) is not None]

    def result(self, cell: Cell) -> Path:
        return self / "cells" / cell.id / "result.json"

    def open_cells(self, cells: list[Cell], failed_before: float | None = None) -> list[Cell]:
        """Those without a result; with `failed_before` also those that failed before that time."""
        return [c for c in cells if not self._done(c, failed_before)]

    def _done(self, cell: Cell, failed_before: float | None) -> bool:
        path = self.result(cell)
        row = _row(path)
        if row is None:
            return False
        old = failed_before is not None and path.stat().st_mtime < failed_before
        return not (old and row.get("error"))

    @contextmanager
    def claim(self, cell: Cell, failed_before: float | None = None) -> Iterator[bool]:
        """Whether the cell is ours until the block ends: nobody else holds it, and nobody has finished it meanwhile."""
        with locked(self / "cells" / cell.id / "claim", wait=False) as ours:
            yield ours and not self._done(cell, failed_before)


def _row(path: Path) -> dict[str, Any] | None:
    """What a result.json holds; None where there is none, or one that is not whole: its cell is then run again."""
    try:
        row = plain_json(plain_text(path))
    except ValueError:
        return None
    return row if whole(row) else None


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """An exclusive lock on a file, made if need be; without `wait`, whether it was to be had."""
    lock, ours = FileLock(path), True
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            ours = False
    try:
        yield ours
    finally:
        lock.release()


@dataclass(frozen=True)
class CellJob:
    """What is done with a cell, by this process or as a job on another machine: `finish`, if it can be claimed."""

    folder: Folder
    measure: Measure
    failed_before: float | None = None  # cells that failed before that time are open, too
    timeout: float | None = None
    keep: bool = False

    def __call__(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's row; None where others hold it, or have finished it."""
        with self.folder.claim(cell, self.failed_before) as ours:
            return finish(cell, self.folder, self.measure, self.timeout, self.keep) if ours else None

    def checkpoint(self, cell: Cell) -> Any:
        """What submitit puts into the queue where a job's time is up: the same again, as snapshots say where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cell)


def finish(
    cell: Cell, folder: Folder, measure: Measure, timeout: float | None = None, keep: bool = False
) -> dict[str, Any]:
    """Run a claimed cell, measure it, leave its row in result.json. What goes wrong is a row with `error`."""
    run = folder / "cells" / cell.id / "run"
    _clear(run)
    found = _quantize(cell, run, timeout)
    if not found["error"]:
        try:
            found |= measure(cell, run)
        except Exception as error:  # of whatever kind: a cell that fails is a row, not the end of the benchmark
            found["error"] = f"measuring: {error or type(error).__name__}"
    if not keep:
        _clear(run, but=("report.json", "report.html"))
    return record(cell, folder, found)


def record(cell: Cell, folder: Folder, found: dict[str, Any]) -> dict[str, Any]:
    """The row of a claimed cell, from what was found of it, left in its result.json."""
    row: dict[str, Any] = {
        "cell": cell.id,
        "model": cell.model_name,
        "source": cell.model,
        "model_hash": cell.model_hash[:8],
        "data": f"{cell.data}" + (f", first {cell.limit}" if cell.limit else ""),
        "method": cell.name,
        "algorithm": cell.method,
        "settings": " ".join(cell.settings),
        "bits": cell.bits,
        "placement": cell.placement or "integer",
        "weights": cell.weights or "",
        "first_last": cell.first_last or "",
        "effort": cell.effort,
        "seed": cell.seed,
        "zaq": version(),
        "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
    }
    row |= found
    row["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_file(folder.result(cell), json_text(row, indent=1) + "\n")
    return row


def _quantize(cell: Cell, run: Path, timeout: float | None) -> dict[str, Any]:
    """`zaq quantize` as a row, from its snapshots on where it was broken off before."""
    going_on = any((beside(run) / SNAPSHOTS).glob("*"))
    row = _launched([*cell.command(run), *(["--resume", str(run)] if going_on else [])], run, timeout)
    if going_on and row.get("code") == REFUSED:  # the snapshots are another version's
        shutil.rmtree(beside(run), ignore_errors=True)
        row = _launched(cell.command(run), run, timeout)
    elif going_on and not row["error"]:
        row["minutes"] = plain_json((run / "report.json").read_text())["minutes"]
    if row.pop("code", 0) > 0:  # a cell that failed fails from its snapshots on, too
        shutil.rmtree(beside(run), ignore_errors=True)
    return row


def _launched(words: list[str], run: Path, timeout: float | None) -> dict[str, Any]:
    """`zaq quantize` the way a user runs it: minutes, peak memory, exit code, and the last line of what it said."""
    command = [sys.executable, "-I", str(LAUNCH), *ZAQ, *words]
    reading, writing = os.pipe()  # our end of it is what tells the launcher that we are gone
    start = time.monotonic()
    said = run.parent / "stderr.txt"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            command, stdin=reading, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        ) as process,
    ):
        os.close(reading)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return {
                "error": f"stopped after {timeout:g} seconds (--timeout)",
                "minutes": (time.monotonic() - start) / 60,
            }
        finally:  # Ctrl-C comes by here too
            os.close(writing)
            process.wait()
    last = (said.read_text(errors="replace").strip().splitlines() or [""])[-1]
    try:
        found = json.loads(out)
    except ValueError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return {"error": f"the process that watched it was killed. {last}".strip()}
    seen = {"minutes": found["seconds"] / 60, "peak_mb": found["peak_mb"], "error": "", "code": found["code"]}
    if found["code"]:
        ended = f"killed by signal {-found['code']}" if found["code"] < 0 else f"exit code {found['code']}"
        seen["error"] = f"{ended}: {last}" if last else ended
    else:
        said.unlink()
    return seen


def _clear(run: Path, but: tuple[str, ...] = ()) -> None:
    for file in run.iterdir() if run.is_dir() else ():
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name not in but:
            file.unlink()


@cache
def version() -> str:
    """The version of zaq, and the commit where it runs from a checkout."""
    package = Path(zaq.__file__).parent
    git = ["git", "-C", str(package)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True
        )  # else it is another's
        commit = subprocess.run(
            [*git, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return zaq.__version__
    return f"{zaq.__version__} ({commit})"
