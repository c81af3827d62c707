"""Between the runner and its snapshots: what they hold of a run, and how it goes on from one."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from zaq.engine.journal import Journal, Record
from zaq.engine.snapshot import Snapshots, Unsaved
from zaq.engine.state import State
from zaq.ir.move import moved

__all__ = ["Saver"]


class Saver:
    """What snapshots hold of a run: the state at the beginning of a stage, and the point inside it, if any."""

    def __init__(self, snapshots: Snapshots, state: State, journal: Journal) -> None:
        self.snapshots, self.state, self.journal = snapshots, state, journal
        self.teacher, self.rewritten = state.task.teacher, 0  # stages until the last that rewrote the teacher
        self.base: dict[str, Any] = {}

    def go_on(self, names: list[str], run: Callable[[int], object]) -> tuple[int, dict[str, Any] | None]:
        """The first stage to run, by number, and the point inside it to begin at; all is put back that was saved.

        A rewritten teacher is in no snapshot: the stages that rewrite it take seconds, and `run` runs them once more.
        """
        found = self.snapshots.newest()
        if found is None:
            return 0, None
        for number in range(found["rewritten"]):
            run(number)
        found = moved(found, self.state.task.device)
        self.teacher, self.rewritten = self.state.task.teacher, found["rewritten"]
        self.state.load(found["state"])
        self.journal.records[:] = [Record(**r) for r in found["records"]]
        where = [*names, "the end"][found["stage"]]
        self.journal.notes[:] = [*found["notes"], f"this run was broken off, and went on from a snapshot at {where}"]
        point: dict[str, Any] | None = found["point"]
        self.journal.log.go_on(point["rows"] if point else found["rows"])
        self.base = found | {"point": None, "notes": list(self.journal.notes)}
        return found["stage"], point

    def begun(self, number: int) -> bool:
        """Whether the snapshot that is gone on from knows the state at the beginning of that stage."""
        return bool(self.base) and self.base["stage"] == number

    def begin(self, number: int) -> None:
        """A stage is about to begin, or all have ended."""
        if self.journal.interrupted:
            return
        if self.state.task.teacher is not self.teacher:
            self.teacher, self.rewritten = self.state.task.teacher, number
        try:
            saved = self.state.save()
        except Unsaved as error:
            self.snapshots.stop(error)
            return
        self.base = {
            "stage": number,
            "rewritten": self.rewritten,
            "state": saved,
            "records": [asdict(r) for r in self.journal.records],
            "notes": list(self.journal.notes),
            "rows": list(self.journal.log.rows),
            "point": None,
        }
        if number:
            base = self.base
            self.snapshots.offer(lambda: base, stage_ended=True)

    def point(self, point: dict[str, Any]) -> None:
        """A stage is at a point that it could go on from."""
        base, rows = self.base, len(self.journal.log.rows)
        log = self.journal.log.rows
        self.snapshots.offer(lambda: base | {"point": point | {"rows": log[:rows]}})

    def end(self) -> None:
        """Ctrl-C came: keep the last point before it, and no more."""
        self.snapshots.flush()
        self.snapshots.stop()
