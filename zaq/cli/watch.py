"""`zaq watch`."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from zaq.cli.options import PATH, Number
from zaq.config.files import beside
from zaq.errors import SourceError

__all__ = ["watch"]

LOG, WHOLE = "log.jsonl", "report.json"
UNTOLD = ("stage", "step")  # of a row; the others are losses


@click.command()
@click.argument("run", type=PATH)
@click.option("--every", type=Number(0.1, 3600), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Say where it is, and end.")
def watch(run: Path, every: float, once: bool) -> None:
    """Where a run is that another process makes: its stages, steps and losses as they come, until it is whole.

    RUN is the folder that was named by -o. It reads RUN's log, and changes nothing.
    """
    stages: dict[str, dict[str, Any]] = {}
    with _log(run).open() as stream:
        shown = _Shown()
        while True:
            for row in _rows(stream):
                stages[row["stage"]] = stages.get(row["stage"], {}) | row
            ended = once or ((run / WHOLE).is_file() and not (beside(run) / LOG).is_file())
            shown(stages, ended)
            if ended:
                break
            time.sleep(every)
    click.echo(f"{run}: " + ("whole" if (run / WHOLE).is_file() else "under way"))


def _log(run: Path) -> Path:
    """The log of a run that is under way, else of one that is whole. Raises SourceError where there is none."""
    for folder in (beside(run), run):
        if (folder / LOG).is_file():
            return folder / LOG
    raise SourceError(f"{run}: there is no {LOG}, neither there nor in {beside(run)}; name the folder that -o named.")


def _rows(stream: IO[str]) -> Iterator[dict[str, Any]]:
    """What was added since the last look, whole lines alone."""
    while True:
        at, line = stream.tell(), stream.readline()
        if not line.endswith("\n"):
            stream.seek(at)
            return
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("stage"), str):
            yield row


def _told(row: dict[str, Any]) -> str:
    """A stage in one line: where it is, and what its losses are."""
    losses = (f"{name} {value:.4g}" for name, value in row.items() if name not in UNTOLD and isinstance(value, float))
    return f"{row['stage']:<20} step {int(row.get('step', 0)) + 1:<6} {'  '.join(losses)}".rstrip()


class _Shown:
    """On a terminal a line a stage, written over; elsewhere the line of each stage that has ended."""

    def __init__(self) -> None:
        self.there, self.terminal = 0, sys.stdout.isatty()

    def __call__(self, stages: dict[str, dict[str, Any]], ended: bool) -> None:
        lines = [_told(row) for row in stages.values()]
        if self.terminal and self.there:
            click.echo(f"\x1b[{self.there}A\x1b[J", nl=False)  # up, and clear what stands below
            self.there = 0
        until = len(lines) if ended or self.terminal else max(len(lines) - 1, 0)
        for line in lines[self.there : until]:
            click.echo(line)
        self.there = until
