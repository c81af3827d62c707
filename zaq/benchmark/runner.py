"""Cell after cell, for as long as there is one that nobody holds."""

import time
from collections.abc import Callable
from typing import Any

from zaq.benchmark import page, table
from zaq.benchmark.cells import Folder, Measure, finish, locked
from zaq.benchmark.plan import Cell
from zaq.config.bounds import plain_json, plain_text
from zaq.engine.progress import Progress
from zaq.errors import Interrupted
from zaq.run import write_file

__all__ = ["run_cells", "write_tables"]


def run_cells(
    folder: Folder,
    cells: list[Cell],
    measure: Measure,
    *,
    retry: bool = False,
    timeout: float | None = None,
    keep: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Run what is not finished, and rewrite the tables after every cell. Raises Interrupted on Ctrl-C,
    tables written."""
    failed_before = time.time() if retry else None
    todo = len(folder.open_cells(cells, failed_before))
    start = time.monotonic()
    try:
        for ran in (progress or Progress()).track("cells", todo):
            row = _next(folder, cells, measure, failed_before, timeout, keep)
            if row is None:  # others have finished, or hold, the rest
                break
            left = len(folder.open_cells(cells, failed_before))
            minutes = (time.monotonic() - start) / 60 / (ran + 1) * left
            say(f"{_line(row)} [{left} left" + (f", about {minutes:.0f} min]" if left else "]"))
            write_tables(folder)
    except KeyboardInterrupt as error:
        left = len(folder.open_cells(cells))
        raise Interrupted(
            f"interrupted with {left} of {len(cells)} cells open; the same command goes on in {folder.path}."
        ) from error
    finally:
        write_tables(folder)


def write_tables(folder: Folder) -> int:
    """results.csv, results.md and index.html from every finished cell in the folder; how many those are."""
    with locked(folder / "tables.lock"):  # else a process could put older tables over another's newer ones
        rows = table.in_order(folder.rows())
        try:
            about = plain_json(plain_text(folder / "benchmark.json"))
        except ValueError:  # none, or one that broke off
            about = {}
        write_file(folder / "results.csv", table.as_csv(rows))
        write_file(folder / "results.md", table.as_markdown(rows))
        write_file(folder / "index.html", page.render(rows, about if isinstance(about, dict) else {}))
    return len(rows)


def _next(
    folder: Folder, cells: list[Cell], measure: Measure, failed_before: float | None, timeout: float | None, keep: bool
) -> dict[str, Any] | None:
    """The row of the first cell that was open and could be claimed."""
    for cell in folder.open_cells(cells, failed_before):
        with folder.claim(cell, failed_before) as ours:
            if ours:
                return finish(cell, folder, measure, timeout, keep)
    return None


def _line(row: dict[str, Any]) -> str:
    what = f"{row['model']} {row['method']} {row['bits']} {row['placement']} seed {row['seed']}"
    if row["error"]:
        return f"{what}: failed: {row['error']}"
    metric = table.metrics([row])[0]
    floats = f" (float {row[f'float_{metric}']:.2f})" if f"float_{metric}" in row else ""
    return f"{what}: {table.METRICS[metric]} {row[f'onnx_{metric}']:.2f}{floats}, {row['minutes']:.1f} min"
