"""The one place where stages are run: random numbers, progress, log, rollback, Ctrl-C, and what is kept."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zaq.engine.journal import Journal, Record
from zaq.engine.snapshot import Snapshots, Unsaved
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State

__all__ = ["drawing", "run_stage", "run_stages", "seed_of"]

LIVES = 2  # times a loss may be no number before a stage stops
SMALLER = 0.1  # the factor on every learning rate each time


def seed_of(seed: int, name: str, again: int = 0) -> int:
    """The seed of a stage's own random numbers: they depend on nothing that another stage did.

    `again`: how many stages of that name ran before. What is called "noise" has the seed itself.
    """
    return seed if name == "noise" else seed + zlib.crc32(f"{name} {again}".encode()) * 2**20


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Inside, torch's random numbers are those of a seed; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


def run_stages(stages: Sequence[Stage], state: State, journal: Journal, snapshots: Snapshots | None = None) -> None:
    """Run a method's stages in their order; with `snapshots` go on from the newest of them, and write more."""
    saver = _Saver(snapshots, state, journal) if snapshots else None
    first, point = saver.go_on(stages) if saver else (0, None)
    for number in range(first, len(stages)):
        if saver and not saver.begun(number):
            saver.begin(number)
        _run(stages, number, state, journal, saver, point)
        point = None
        if saver and journal.interrupted:
            saver.end()
    if saver:
        saver.begin(len(stages))
        saver.snapshots.flush()


def _run(stages: Sequence[Stage], number: int, state: State, journal: Journal, *saved: Any) -> None:
    """Run one of them."""
    again = sum(s.name == stages[number].name for s in stages[:number])
    run_stage(stages[number], state, journal, again, *saved)


class _Saver:
    """What snapshots hold of a run: the state at the beginning of a stage, and the point inside it, if any."""

    def __init__(self, snapshots: Snapshots, state: State, journal: Journal) -> None:
        self.snapshots, self.state, self.journal = snapshots, state, journal
        self.teacher, self.rewritten = state.task.teacher, 0  # stages until the last that rewrote the teacher
        self.base: dict[str, Any] = {}

    def go_on(self, stages: Sequence[Stage]) -> tuple[int, dict[str, Any] | None]:
        """The first stage to run, and the point inside it to begin at; all of it is put back that was saved.

        A rewritten teacher is in no snapshot: the stages that rewrite it take seconds, and are run once more.
        """
        found = self.snapshots.newest()
        if found is None:
            return 0, None
        for number in range(found["rewritten"]):
            _run(stages, number, self.state, Journal(records=[], notes=[]))
        self.teacher, self.rewritten = self.state.task.teacher, found["rewritten"]
        self.state.load(found["state"])
        self.journal.records[:] = [Record(**r) for r in found["records"]]
        where = stages[found["stage"]].name if found["stage"] < len(stages) else "the end"
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


def run_stage(
    stage: Stage,
    state: State,
    journal: Journal,
    again: int = 0,
    saver: _Saver | None = None,
    point: dict[str, Any] | None = None,
) -> None:
    """Run one stage: log its losses, go back where one is not finite, stop at Ctrl-C, keep the best state it went
    through.

    A loss that is not finite puts the last good state back and goes on with a tenth of the rate, twice; then the stage
    ends with what it has. Ctrl-C ends it with the last good state, and those after it are left out, except for what
    `Stage.after_ctrl_c` says. With a judge the state with the least held-out loss stays, the one before the stage
    included.
    """
    stopped = journal.interrupted
    if (stopped and not stage.after_ctrl_c) or not stage.applies(state):
        return
    record = Record(stage.name)
    if stage.recorded:
        journal.records.append(record)
    with drawing(seed := seed_of(state.task.seed, stage.name, again)):
        judge = _undisturbed(stage.judge(state), journal)
        record.loss_before = judge() if judge else None
        before = state.student.snapshot() if judge else None
        try:
            loop = stage.start(state, journal)
        except KeyboardInterrupt:
            journal.interrupted = True
            record.say("interrupted before its first step")
            return
        if not stopped or stage.after_ctrl_c == "run":
            _Steps(stage, loop, record, journal, judge, seed, saver).run(stage.length(state), point)
        loop.finish()
        if judge and before is not None:
            record.loss_after = judge()
            record.kept = record.loss_after < (record.loss_before or 0.0)  # never where it is NaN
            if not record.kept:
                state.student.restore(before)
                if "not kept" not in record.note:
                    record.say(f"not kept: the held-out loss was {record.loss_after:.4g} after it")
                record.loss_after = record.loss_before


def _undisturbed(judge: Callable[[], float] | None, journal: Journal) -> Callable[[], float] | None:
    """The same judge, which Ctrl-C does not keep from judging."""

    def judged() -> float:
        assert judge is not None
        try:
            return judge()
        except KeyboardInterrupt:
            journal.interrupted = True
            return judge()

    return judged if judge else None


def _finite(saved: Any) -> bool:
    tensors = (leaf for leaf in pytree.tree_leaves(saved) if isinstance(leaf, Tensor))
    return all(bool(t.isfinite().all()) for t in tensors)


class _Steps:
    """The steps of one stage."""

    def __init__(
        self,
        stage: Stage,
        loop: Loop,
        record: Record,
        journal: Journal,
        judge: Callable[[], float] | None,
        seed: int,
        saver: _Saver | None,
    ) -> None:
        self.stage, self.loop, self.record, self.journal = stage, loop, record, journal
        self.judge, self.seed, self.saver = judge, seed, saver
        self.lives = LIVES
        self.good: tuple[int, Any] = (0, loop.save())  # the last state that was saved with all of it finite
        self.best: tuple[float, int, Any] | None = None  # held-out loss, step, state
        if judge:
            self.best = (record.loss_before or 0.0, 0, self.good[1])

    def run(self, steps: int, point: dict[str, Any] | None = None) -> None:
        """All of them, as far as nothing stops them; or those behind a point that a snapshot holds."""
        name = self.stage.name
        ticks = iter(self.journal.progress.track(name, steps) if self.stage.recorded else range(steps))
        if point:
            self._go_on(point)
            for _ in range(self.record.steps):
                next(ticks)
        i: int | None = None
        while True:
            try:
                i = next(ticks, None)
                if i is None:
                    break
                losses = self.loop.step(i, steps)
            except KeyboardInterrupt:
                self.journal.interrupted = True
                if self.stage.after_ctrl_c == "run":
                    ticks = iter(range(0 if i is None else i + 1, steps))
                    continue
                self._back()
                self.record.say(f"interrupted after step {self.record.steps} of {steps}")
                break
            if all(math.isfinite(v) for v in losses.values()) and self._good(i, steps, losses):
                continue
            self._back()
            self.journal.log(name, i, rolled_back=1.0)
            self.lives, self.loop.slower = self.lives - 1, self.loop.slower * SMALLER
            if self.lives < 0:
                self.record.say(f"stopped at step {i + 1} of {steps}: the loss became NaN {LIVES + 1} times")
                break
            torch.manual_seed((self.seed + i + 1) % 2**63)  # other numbers than those that led there
        if self.best is not None:
            self._keep_the_best()

    def _good(self, i: int, steps: int, losses: dict[str, float]) -> bool:
        """Go on from a step whose losses were finite; False if what it led to is not: a finite loss may have a gradient
        that is not."""
        done = i + 1
        if done % self.stage.look == 0 or done == steps:
            saved = self.loop.save()
            if not _finite(saved):
                return False
            self.good = (done, saved)
        if losses:
            self.journal.log(self.stage.name, i, **losses)
        self.record.steps = done
        if self.stage.checks > 1 and done % max(steps // self.stage.checks, 1) == 0 and done < steps:
            self._check()
        if self.saver and self.good[0] == done < steps and self.loop.resumable and not self.journal.interrupted:
            self.saver.point(self._point())
        return True

    def _point(self) -> dict[str, Any]:
        return {
            "good": self.good,
            "best": self.best,
            "record": asdict(self.record),
            "lives": self.lives,
            "slower": self.loop.slower,
            "random": torch.get_rng_state(),
        }

    def _go_on(self, point: dict[str, Any]) -> None:
        """Put everything back that `_point` saved."""
        self.good, self.best, self.lives = point["good"], point["best"], point["lives"]
        self.loop.restore(self.good[1])
        self.loop.slower = point["slower"]
        for name, value in point["record"].items():
            setattr(self.record, name, value)
        torch.set_rng_state(point["random"])

    def _back(self) -> None:
        self.record.steps = self.good[0]
        self.loop.restore(self.good[1])

    def _check(self) -> None:
        """Ask the judge, and remember the state if it is the best so far."""
        assert self.judge is not None and self.best is not None
        loss = self.judge()
        self.journal.log(self.stage.name, self.record.steps, held_out=loss)
        if loss < self.best[0]:
            self.best = (loss, self.record.steps, self.loop.save())

    def _keep_the_best(self) -> None:
        assert self.best is not None
        if self.stage.checks == 1:  # the runner looks once, when all is finished
            return
        self._check()
        _, step, state = self.best
        self.loop.restore(state)
        if step < self.record.steps:
            kept = f"the state after step {step} was kept" if step else "not kept"
            self.record.say(f"{kept}: the held-out loss went up from there")
