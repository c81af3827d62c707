"""Cell after cell, for as long as there is one that nobody holds."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from zaq.benchmark import page, table
from zaq.benchmark.cells import CellJob, Folder, Measure, locked
from zaq.benchmark.cluster import Cluster
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
    cluster: Cluster | None = None,
) -> None:
    """Run what is not finished, here or as jobs of a `cluster`, and rewrite the tables after every cell.

    Raises Interrupted on Ctrl-C, tables written and jobs cancelled.
    """
    work = CellJob(folder, measure, time.time() if retry else None, timeout, keep)
    todo = folder.open_cells(cells, work.failed_before)
    rows = cluster.rows(work, todo, say) if cluster else _rows(work, cells)
    start = time.monotonic()
    try:
        with closing(rows):
            for ran, row in zip((progress or Progress()).track("cells", len(todo)), rows, strict=False):
                left = len(folder.open_cells(cells, work.failed_before))
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


def _rows(work: CellJob, cells: list[Cell]) -> Generator[dict[str, Any], None, None]:
    """Each time the row of the first cell that was open and could be claimed, until others have, or hold, the rest."""
    while row := next(filter(None, map(work, work.folder.open_cells(cells, work.failed_before))), None):
        yield row


def _line(row: dict[str, Any]) -> str:
    what = f"{row['model']} {row['method']} {row['bits']} {row['placement']} seed {row['seed']}"
    if row["error"]:
        return f"{what}: failed: {row['error']}"
    metric = table.metrics([row])[0]
    floats = f" (float {row[f'float_{metric}']:.2f})" if f"float_{metric}" in row else ""
    return f"{what}: {table.METRICS[metric]} {row[f'onnx_{metric}']:.2f}{floats}, {row['minutes']:.1f} min"
