"""The one place where stages are run: random numbers, progress, log, rollback, Ctrl-C, and what is kept."""

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zaq.compute.processes import sent, together, world
from zaq.compute.random import drawing, random_state, set_random_state, set_seed
from zaq.config.memory import hand_back
from zaq.engine.ahead import ahead
from zaq.engine.interruption import ctrl_c_of_all, stop_together
from zaq.engine.journal import Journal, Record
from zaq.engine.saver import Saver
from zaq.engine.snapshot import Snapshots
from zaq.engine.stage import Diverged, Loop, Stage
from zaq.engine.state import State
from zaq.engine.store import rest
from zaq.errors import UserError

__all__ = ["run_stage", "run_stages", "seed_of"]

LIVES = 2  # times a stage may go wrong before it stops
SMALLER = 0.1  # the factor on every learning rate each time
# A loss has run away where it is so many times what it was in the first steps (and no less than LITTLE), or beyond
# all that a loss can mean. A generator's may grow a hundredfold in a game that goes well.
FAR, FIRST, LITTLE, HUGE = 1e4, 10, 1e-2, 1e20


def seed_of(seed: int, name: str, again: int = 0) -> int:
    """The seed of a stage's own random numbers: they depend on nothing that another stage did.

    `again`: how many stages of that name ran before. What is called "noise" has the seed itself.
    """
    return seed if name == "noise" else seed + zlib.crc32(f"{name} {again}".encode()) * 2**20


def run_stages(stages: Sequence[Stage], state: State, journal: Journal, snapshots: Snapshots | None = None) -> None:
    """Run a method's stages in their order; with `snapshots` go on from the newest of them, and write more."""
    if state.task.batch % world():
        raise UserError(
            f"--devices: a batch of this network has {state.task.batch} images, which {world()} processes cannot share "
            "evenly; a power of two that is no larger can."
        )
    with ctrl_c_of_all(), together():
        _run_all(stages, state, journal, snapshots)


def _run_all(stages: Sequence[Stage], state: State, journal: Journal, snapshots: Snapshots | None) -> None:
    saver = Saver(snapshots, state, journal) if snapshots else None
    first, point = 0, None
    if saver:
        first, point = saver.go_on([s.name for s in stages], lambda k: _run(stages, k, state, Journal()))
    shared = ahead(stages, state.task) if world() > 1 else None  # it runs the teacher, which all processes do or none
    with journal.progress.over(lambda: shared or ahead(stages, state.task)):
        for number in range(first, len(stages)):
            if saver and not saver.begun(number):
                saver.begin(number)
            _run(stages, number, state, journal, saver, point)
            point = None
            if saver and journal.interrupted:
                saver.end()
        if not journal.interrupted:
            journal.progress.finished()
    if saver:
        saver.begin(len(stages))
        saver.snapshots.flush()


def _run(stages: Sequence[Stage], number: int, state: State, journal: Journal, *saved: Any) -> None:
    """Run one of them."""
    again = sum(s.name == stages[number].name for s in stages[:number])
    run_stage(stages[number], state, journal, again, *saved)


def run_stage(
    stage: Stage,
    state: State,
    journal: Journal,
    again: int = 0,
    saver: Saver | None = None,
    point: dict[str, Any] | None = None,
) -> None:
    """Run one stage: log its losses, go back where it goes wrong, stop at Ctrl-C, keep the best state it went through.

    A loss that is not finite, or that runs away, what is learned being no number any more, and what a loop finds wrong
    itself (`Diverged`) put the last good state back; the stage goes on with a tenth of the rate, twice, then ends with
    what it has, and its record says so. Ctrl-C ends it with the last good state, and those after it are left out,
    except for what `Stage.after_ctrl_c` says. With a judge the state with the least held-out loss stays, the one before
    the stage included.
    """
    stopped = journal.interrupted
    if (stopped and not stage.after_ctrl_c) or not stage.applies(state):
        return
    record, began = Record(stage.name), time.monotonic()
    if stage.recorded:
        journal.records.append(record)
    with drawing(seed := seed_of(state.task.seed, stage.name, again), state.task.device):
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
            _Steps(stage, loop, record, journal, judge, seed, state.task.device, saver).run(stage.length(state), point)
        loop.finish()
        del loop  # with all that it needed for its steps
        hand_back()
        state.require_finite()
        if judge and before is not None:
            record.loss_after = judge()
            record.kept = record.loss_after < (record.loss_before or 0.0)  # never where it is NaN
            if not record.kept:
                state.student.restore(before)
                if "not kept" not in record.note:
                    record.say(f"not kept: the held-out loss was {record.loss_after:.4g} after it")
                record.loss_after = record.loss_before
    record.seconds = round(record.seconds + time.monotonic() - began, 2)
    journal.progress.detail(str(record))


def _undisturbed(judge: Callable[[], float] | None, journal: Journal) -> Callable[[], float] | None:
    """The same judge, which Ctrl-C does not keep from judging."""

    def judged() -> float:
        assert judge is not None
        try:
            return sent(judge())
        except KeyboardInterrupt:
            journal.interrupted = True
            return sent(judge())

    return judged if judge else None


def _finite(saved: Any) -> bool:
    for leaf in pytree.tree_leaves(saved):
        if isinstance(leaf, Tensor) and not bool(leaf.isfinite().all()):
            return False
        rest()
    return True


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
        device: torch.device,
        saver: Saver | None,
    ) -> None:
        self.stage, self.loop, self.record, self.journal = stage, loop, record, journal
        self.judge, self.seed, self.device, self.saver = judge, seed, device, saver
        self.checks = 1 if loop.chooses else stage.checks
        self.began = time.monotonic()
        self.faults: list[str] = []  # what was gone back from
        self.good: tuple[int, Any] = (0, loop.save())  # the last state that was saved with all of it finite
        self.best: tuple[float, int, Any] | None = None  # held-out loss, step, state
        self.chapter, self.usual, self.seen = -1, dict[str, float](), 0  # the largest losses of its first steps
        if judge:
            self.best = (record.loss_before or 0.0, 0, self.good[1])

    def run(self, steps: int, point: dict[str, Any] | None = None) -> None:
        """All of them, as far as nothing stops them; or those behind a point that a snapshot holds."""
        name, faults = self.stage.name, self.faults
        ticks = iter(self.journal.progress.track(name, steps) if self.stage.recorded else range(steps))
        if point:
            self._go_on(point)
            for _ in range(self.record.steps):
                next(ticks)
        i: int | None = None
        while True:
            try:
                if over := self.loop.over():
                    self.record.say(f"ended after step {self.record.steps} of {steps}: {over}")
                    break
                i = next(ticks, None)
                if i is None:
                    break
                why = self._step(i, steps)
                rest()
            except KeyboardInterrupt:
                self.journal.interrupted = True
                if self.stage.after_ctrl_c == "run":
                    ticks = iter(range(0 if i is None else i + 1, steps))
                    continue
                self._back()
                self.record.say(f"interrupted after step {self.record.steps} of {steps}")
                break
            if not why:
                continue
            self._back()
            self.journal.log(name, i, rolled_back=1.0)
            faults.append(why)
            self.loop.slower *= SMALLER
            if len(faults) > LIVES:
                self.record.say(f"stopped at step {i + 1} of {steps}: {why} {len(faults)} times")
                break
            set_seed(self.seed + i + 1, self.device)  # other numbers than those that led there
        if 0 < len(faults) <= LIVES:
            times = "once" if len(faults) == 1 else "twice"
            self.record.say(
                f"went back {times}, and on with a smaller step, since {' and '.join(dict.fromkeys(faults))}"
            )
        if self.best is not None:
            self._keep_the_best()

    def _step(self, i: int, steps: int) -> str:
        """Do a step, and say what is wrong with it; "" where nothing is."""
        try:
            stop_together()
            losses = sent(self.loop.step(i, steps))
        except Diverged as error:
            return str(error)
        chapter = self.loop.chapter(i)
        if chapter != self.chapter and i > 0 and i not in self.record.borders:
            self.record.borders.append(i)
        if why := self._wrong(chapter, losses):
            return why
        return "" if self._good(i, steps, losses) else "what is learned became NaN or infinite"

    def _wrong(self, chapter: int, losses: dict[str, float]) -> str:
        """What is wrong with losses, held against those of the first steps."""
        if chapter != self.chapter:
            self.chapter, self.usual, self.seen = chapter, {}, 0
        for name, value in losses.items():
            if not math.isfinite(value):
                return f"the loss became {'NaN' if math.isnan(value) else 'infinite'}"
            if abs(value) > min(FAR * max(self.usual.get(name, HUGE), LITTLE), HUGE):
                return f"the loss {name} ran away to {value:.3g}"
        if self.seen < FIRST:
            self.seen += 1
            self.usual = {n: max(self.usual.get(n, 0.0), abs(v)) for n, v in losses.items()}
        return ""

    def _good(self, i: int, steps: int, losses: dict[str, float]) -> bool:
        """Go on from a step whose losses were sound; False if what it led to is not: a finite loss may have a gradient
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
        due = self.checks > 1 and done % max(steps // self.checks, 1) == 0 and done < steps
        if due and not self._check():
            return False
        if self.saver and self.good[0] == done < steps and self.loop.resumable and not self.journal.interrupted:
            self.saver.point(self._point())
        return True

    def _point(self) -> dict[str, Any]:
        return {
            "good": self.good,
            "best": self.best,
            "record": asdict(self.record) | {"seconds": self.record.seconds + time.monotonic() - self.began},
            "faults": list(self.faults),
            "usual": (self.chapter, dict(self.usual), self.seen),
            "slower": self.loop.slower,
            "random": random_state(self.device),
        }

    def _go_on(self, point: dict[str, Any]) -> None:
        """Put everything back that `_point` saved."""
        self.good, self.best = point["good"], point["best"]
        self.faults[:] = point["faults"]
        self.chapter, self.usual, self.seen = point["usual"]
        self.loop.restore(self.good[1])
        self.loop.slower = point["slower"]
        for name, value in point["record"].items():
            setattr(self.record, name, value)
        set_random_state(point["random"], self.device)

    def _back(self) -> None:
        self.record.steps = self.good[0]
        self.loop.restore(self.good[1])

    def _check(self) -> bool:
        """Ask the judge, and remember the state if it is the best so far; False if what it finds is no number."""
        assert self.judge is not None and self.best is not None
        loss = self.judge()
        if not math.isfinite(loss):
            return False
        self.journal.log(self.stage.name, self.record.steps, held_out=loss)
        if loss < self.best[0]:
            self.best = (loss, self.record.steps, self.loop.save())
        return True

    def _keep_the_best(self) -> None:
        assert self.best is not None
        if self.checks == 1:  # the runner looks once, when all is finished
            return
        self._check()
        _, step, state = self.best
        self.loop.restore(state)
        if step < self.record.steps:
            kept = f"the state after step {step} was kept" if step else "not kept"
            self.record.say(f"{kept}: the held-out loss went up from there")
