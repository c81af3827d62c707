"""What happened: the stages and what each was worth, losses step by step, notes,
and whether somebody pressed Ctrl-C."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zaq.config.bounds import json_text
from zaq.engine.progress import Progress

__all__ = ["Journal", "Log", "Record"]


@dataclass
class Log:
    """Losses step by step, in memory and, if there is a path, in a file of JSON lines as they come."""

    path: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, stage: str, step: int, **values: float) -> None:
        row = {"stage": stage, "step": step, **values}
        self.rows.append(row)
        if self.path:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # no link that lies there
            with open(self.path, "a", opener=lambda path, _: os.open(path, flags, 0o666)) as file:
                file.write(json_text(row) + "\n")

    def go_on(self, rows: list[dict[str, Any]]) -> None:
        """Begin anew with these rows: those of a run that was broken off."""
        self.rows = []
        if self.path:
            self.path.unlink(missing_ok=True)
        for row in rows:
            self(**row)


@dataclass
class Record:
    """What one stage did: steps, the held-out loss before and after if it was judged by one, whether it was kept, how
    long it took, and at which steps a chapter of it began (`Loop.chapter`): a block of the network, of those learned
    one after another."""

    name: str
    steps: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    kept: bool = True
    note: str = ""
    seconds: float = field(default=0.0, compare=False)  # a run that is repeated is the same run
    borders: list[int] = field(default_factory=list)

    def say(self, note: str) -> None:
        """Add a sentence to the note."""
        self.note = "; ".join(filter(None, [self.note, note]))

    def __str__(self) -> str:
        """What it was worth, in one line."""
        judged = "" if self.loss_before is None else f", held-out loss {self.loss_before:.4g} to {self.loss_after:.4g}"
        counted = f"{self.steps} step{'s' if self.steps != 1 else ''}"
        return f"{self.name}: {counted}{judged}" + (f" ({self.note})" if self.note else "")


@dataclass
class Journal:
    """What the report of a run is made from. `interrupted`: stages that can wait are not begun any more."""

    progress: Progress = field(default_factory=Progress)
    log: Log = field(default_factory=Log)
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def begin_anew(self, notes: list[str]) -> None:
        """Forget what the stages said, but for these notes."""
        self.records.clear()
        self.notes[:] = notes
        self.log.go_on([])
