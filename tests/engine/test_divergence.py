"""Whatever goes wrong in a stage that learns is noticed within ten steps, gone back from with a smaller step, and told.

In every stage that learns, of every method, one step is spoilt: its losses, its gradients, the ranges or the images.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from zoo import CARD, SHAPE, traced

from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import SourceError, TrainingError
from zaq.methods import METHODS
from zaq.passes.fold import fold
from zaq.stages.calibrate import Calibrate
from zaq.stages.synthesis import Draw

pytestmark = pytest.mark.slow  # test_run_stage.py tries each way to go wrong on a stage of its own

SHORT: dict[str, dict[str, Any]] = {
    "flagship": {"synthesis": 14, "refine": 14, "images": 64, "reconstruct": 5, "polish": 12, "game": 8},
    "zaq": {"warm_up": 12, "rounds": 8},
    "gdfq": {"epochs": 5, "iterations": 6, "warm_up": 0.5},
    "zeroq": {"steps": 12},
    "deepinversion": {"steps": 12, "finetune": 12, "images": 32},
    "ft": {"steps": 12},
}
STUDENTS = {"reconstruct", "polish", "zaq", "gdfq", "finetune", "ft"}  # stages that a student learns in
DRAWING = {"synthesis", "held-out synthesis", "warm-up", "zaq", "gdfq"}  # that draw images at every step
LEARN = STUDENTS | DRAWING | {"refine", "held-out refine", "distil", "compete"}
AT = 3  # the step that is spoilt
Spoil = Callable[[State, Stage, Loop], AbstractContextManager[None]]


@contextlib.contextmanager
def gradient(state: State, stage: Stage, loop: Loop) -> Iterator[None]:
    def spoilt(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.fill_(math.nan)

    handle = register_optimizer_step_pre_hook(spoilt)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def ranges(state: State, stage: Stage, loop: Loop) -> Iterator[None]:
    if stage.name in STUDENTS:
        for quantizer in state.student.placement.activations.values():
            quantizer.scale.data.fill_(math.nan)
    yield


def drawn(make: Callable[[Tensor], Tensor]) -> Spoil:
    """What a generator draws, spoilt; or the pixels that are moved."""

    @contextlib.contextmanager
    def spoil(state: State, stage: Stage, loop: Any) -> Iterator[None]:
        generators = [g for g in (state.generator, state.other) if g is not None and stage.name in DRAWING]
        handles = [g.register_forward_hook(lambda _m, _i, images: make(images)) for g in generators]
        if hasattr(loop, "x"):
            loop.x.data.copy_(make(loop.x.data))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    return spoil


def result(value: float) -> Callable[[dict[str, float]], dict[str, float]]:
    return lambda losses: dict.fromkeys(losses, value)


def real() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield torch.randn(16, *SHAPE), torch.randint(5, (16,))


def spoilt(
    method: str, only: set[str], spoil: Spoil | None = None, losses: Callable[[dict[str, float]], Any] | None = None
) -> tuple[State, Journal]:
    """Run a method in which one step of every stage of `only` is spoilt."""
    asked = METHODS[method](**SHORT[method])
    state, journal = State(Task(fold(traced("residual"))[0], QConfig.parse("w4a4"), CARD)), Journal()
    with drawing(0):
        stages = asked.plan(state.task, real()) if asked.reads_data else asked.plan(state.task)
        for stage in (s for s in stages if s.name in only):
            object.__setattr__(stage, "start", _start(stage, spoil, losses))
        run_stages(stages, state, journal)
    return state, journal


def _start(stage: Stage, spoil: Spoil | None, losses: Callable[[dict[str, float]], Any] | None) -> Any:
    start = stage.start

    def started(state: State, journal: Journal) -> Loop:
        loop = start(state, journal)
        step, left = loop.step, [True]

        def one(i: int, of: int) -> Any:
            if i != AT or not left[0]:
                return step(i, of)
            left[0] = False
            with spoil(state, stage, loop) if spoil else contextlib.nullcontext():
                found = step(i, of)
            return losses(found) if losses else found

        loop.step = one  # type: ignore[method-assign]
        return loop

    return started


def require_told(state: State, journal: Journal, only: set[str], word: str) -> None:
    records = [r for r in journal.records if r.name in only]
    assert records
    for record in records:
        back = [row["step"] for row in journal.log.rows if row["stage"] == record.name and "rolled_back" in row]
        assert len(back) == 1 and AT <= back[0] <= AT + 10, (record, back)
        assert "went back once, and on with a smaller step, since " in record.note and word in record.note, record
    values = [v for row in journal.log.rows for v in row.values() if isinstance(v, float)]
    assert values and all(map(math.isfinite, values)) and not state.student.broken()


FAR = [(m, 1e12, "ran away to 1e+12") for m in SHORT]


@pytest.mark.parametrize(("method", "value", "word"), [*FAR, ("zaq", math.nan, "NaN"), ("zaq", math.inf, "infinite")])
def test_losses(method: str, value: float, word: str) -> None:
    require_told(*spoilt(method, LEARN, losses=result(value)), LEARN, word)


@pytest.mark.parametrize("method", SHORT)
def test_gradients(method: str) -> None:
    require_told(*spoilt(method, LEARN, gradient), LEARN, "NaN")


@pytest.mark.parametrize("method", sorted(set(SHORT) - {"zeroq"}))
def test_ranges(method: str) -> None:
    require_told(*spoilt(method, STUDENTS, ranges), STUDENTS, "NaN")


@pytest.mark.parametrize("method", sorted(set(SHORT) - {"ft"}))
def test_images_that_are_no_numbers(method: str) -> None:
    only = LEARN - STUDENTS | (DRAWING & STUDENTS)
    require_told(*spoilt(method, only, drawn(lambda x: torch.full_like(x, math.nan))), only, "NaN")


@pytest.mark.parametrize("method", ["flagship", "zaq", "gdfq"])
def test_images_that_are_all_alike(method: str) -> None:
    found = spoilt(method, DRAWING, drawn(lambda x: x[:1].expand_as(x)))
    require_told(*found, DRAWING, "the generator's images became all alike")


def test_a_stage_that_goes_wrong_again_and_again_stops() -> None:
    """With the state before it, where even the first image is like all others; what is drawn then is told of."""

    class Stuck(torch.nn.Module):
        classes = None

        def draw(self, n: int) -> Tensor:
            return torch.zeros(n, *SHAPE)

    state, journal = State(Task(fold(traced("residual"))[0], QConfig.parse("w4a4"), CARD)), Journal()
    state.generator = Stuck()
    run_stages([Draw(count=32), Draw(name="held-out draw", count=32, held_out=True)], state, journal)
    assert [("learned from" in n, "held out" in n) for n in journal.notes] == [(True, False), (False, True)]
    assert all("are all alike" in n for n in journal.notes)


def test_images_that_are_no_numbers_are_not_learned_from() -> None:
    class Broken(torch.nn.Module):
        def draw(self, n: int) -> Tensor:
            return torch.full((n, *SHAPE), math.nan)

    state = State(Task(fold(traced("residual"))[0], QConfig.parse("w4a4"), CARD))
    state.generator = Broken()
    with pytest.raises(TrainingError, match="32 of the 32 images that the generator draws are NaN"):
        run_stages([Draw(count=32)], state, Journal())
    for observer in ("minmax", "mse", "ema", "laplace", "gauss"):
        state.images = torch.full((8, *SHAPE), math.nan)
        with pytest.raises((TrainingError, SourceError), match="NaN or infinite"):
            run_stages([Calibrate(observer=observer)], state, Journal())
