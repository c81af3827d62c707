"""The runner, on stages that do as they are told: what is kept, gone back to, broken off, drawn and told."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from zoo import CARD, Impatient, traced

from zaq.config.bits import QConfig
from zaq.engine.journal import Journal
from zaq.engine.progress import Progress
from zaq.engine.runner import run_stages, seed_of
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.passes.fold import fold


@pytest.fixture
def state() -> State:
    return State(Task(fold(traced("no_batch_norm"))[0], QConfig.parse("w4a4"), CARD))


def weight(state: State) -> Tensor:
    return state.student.weight(next(iter(state.student.placement.weights)))


@dataclass(frozen=True, kw_only=True)
class Told(Stage):
    """A stage whose steps are `one`, which changes the student and one tensor of its optimizer."""

    name: str = "told"
    steps: int = 6
    one: Callable[[State, torch.optim.Optimizer, int], dict[str, float] | None] = lambda *_: {"loss": 1.0}
    held_out: Callable[[State], float] | None = None

    def judge(self, state: State) -> Callable[[], float] | None:
        asked = self.held_out
        return (lambda: asked(state)) if asked else None

    def start(self, state: State, journal: Journal) -> Loop:
        optimizer = torch.optim.SGD([weight(state)], 0.1)
        return Loop(lambda i: self.one(state, optimizer, i), state.student.module, optimizer)


class Checked(Told):
    """One whose judge looks at every second of its steps."""

    checks: ClassVar[int] = 3


def scaled(by: float, loss: float = 1.0) -> Callable[[State, Any, int], dict[str, float]]:
    def one(state: State, _: object, i: int) -> dict[str, float]:
        weight(state).data.mul_(by)
        return {"loss": loss}

    return one


def size(state: State) -> float:
    return float(weight(state).detach().abs().sum())


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_nan_goes_back_twice_with_a_smaller_step_then_stops(where: str, state: State) -> None:
    """In the loss, or in the weights alone, as a finite loss with an infinite slope leaves them."""
    rates: list[float] = []

    def one(state: State, optimizer: torch.optim.Optimizer, i: int) -> dict[str, float]:
        rates.append(optimizer.param_groups[0]["lr"])
        bad = len(rates) > 2
        weight(state).data.mul_(math.nan if bad and where == "weights" else 0.5)
        return {"loss": math.nan if bad and where == "loss" else 1.0}

    before, journal = weight(state).detach().clone(), Journal()
    run_stages([Told(one=one)], state, journal)
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.001])
    why = {"loss": "the loss became NaN", "weights": "what is learned became NaN or infinite"}[where]
    assert journal.records[0].note == f"stopped at step 5 of 6: {why} 3 times"
    assert journal.records[0].steps == 2 and journal.records[0].kept and not journal.interrupted
    assert [r["step"] for r in journal.log.rows if "rolled_back" in r] == [2, 3, 4]
    torch.testing.assert_close(weight(state).detach(), before / 4)


@pytest.mark.parametrize("inside", [False, True])
def test_ctrl_c_keeps_the_last_whole_step(inside: bool, state: State) -> None:
    def one(state: State, _: object, i: int) -> dict[str, float]:
        weight(state).data.mul_(0.5)
        if inside and i == 2:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    before, journal = weight(state).detach().clone(), Journal(Progress() if inside else Impatient("told", 2))
    run_stages([Told(one=one), Told(name="later", one=scaled(0.0))], state, journal)
    assert journal.interrupted and [r.name for r in journal.records] == ["told"]
    assert journal.records[0].note == "interrupted after step 2 of 6" and journal.records[0].steps == 2
    torch.testing.assert_close(weight(state).detach(), before / 4)


def test_ctrl_c_while_a_stage_begins_or_is_judged(state: State) -> None:
    asked: list[float] = []

    def judge(state: State) -> float:
        asked.append(size(state))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return asked[-1]

    journal = Journal()
    run_stages([Told(one=scaled(0.5), held_out=judge)], state, journal)
    assert journal.interrupted and journal.records[0].kept and journal.records[0].loss_after == asked[-1]

    class Slow(Told):
        def start(self, state: State, journal: Journal) -> Loop:
            raise KeyboardInterrupt

    journal = Journal()
    run_stages([Slow(held_out=size)], state, journal)
    assert journal.interrupted and journal.records[0].note == "interrupted before its first step"


@pytest.mark.parametrize(("what", "steps"), [("", None), ("start", 0), ("run", 4)])
def test_what_is_still_done_after_ctrl_c(what: str, steps: int | None, state: State) -> None:
    finished: list[str] = []

    class After(Told):
        after_ctrl_c: ClassVar[str] = what

        def start(self, state: State, journal: Journal) -> Loop:
            loop = super().start(state, journal)
            loop.finish = lambda: finished.append(self.name)  # type: ignore[method-assign]
            return loop

    journal = Journal(Impatient("told", 0))
    run_stages([Told(), After(name="after", steps=4)], state, journal)
    assert [r.steps for r in journal.records[1:]] == ([] if steps is None else [steps])
    assert finished == ([] if steps is None else ["after"])


def test_ctrl_c_does_not_end_what_others_need(state: State) -> None:
    class Needed(Told):
        after_ctrl_c: ClassVar[str] = "run"

    before, journal = size(state), Journal(Impatient("told", 2))
    run_stages([Needed(one=scaled(0.5), steps=4)], state, journal)
    assert journal.interrupted and journal.records[0].steps == 4 and not journal.records[0].note
    assert size(state) == pytest.approx(before / 16)


@pytest.mark.parametrize("by", [2.0, math.nan])
def test_what_does_not_serve_is_taken_back(by: float, state: State) -> None:
    before, journal = weight(state).detach().clone(), Journal()

    def once(state: State, *_: object) -> None:
        weight(state).data.mul_(by)

    run_stages([Told(one=once, steps=1, held_out=size)], state, journal)
    record = journal.records[0]
    assert not record.kept and record.loss_after == record.loss_before and torch.equal(weight(state), before)
    if not math.isnan(by):
        assert record.note == f"not kept: the held-out loss was {2 * size(state):.4g} after it"


def test_of_the_states_that_were_judged_the_best_stays(state: State) -> None:
    factors = (0.5, 0.5, 0.5, 0.5, 10.0, 10.0)

    def one(state: State, _: object, i: int) -> dict[str, float]:
        weight(state).data.mul_(factors[i])
        return {"loss": 1.0}

    before, journal = size(state), Journal()
    run_stages([Checked(one=one, held_out=size)], state, journal)
    assert size(state) == pytest.approx(before / 16)
    assert journal.records[0].note == "the state after step 4 was kept: the held-out loss went up from there"
    assert [r["step"] for r in journal.log.rows if "held_out" in r] == [2, 4, 6]
    assert journal.records[0].kept and journal.records[0].loss_after == pytest.approx(before / 16)

    before, journal = size(state), Journal()
    run_stages([Checked(one=scaled(2.0), held_out=size)], state, journal)
    assert size(state) == before and not journal.records[0].kept
    assert journal.records[0].note == "not kept: the held-out loss went up from there"


@dataclass(frozen=True, kw_only=True)
class Dice(Stage):
    """Draws a number."""

    name: str = "dice"
    cups: list[float] = field(default_factory=list)

    def once(self, state: State, journal: Journal) -> None:
        self.cups.append(float(torch.rand(())))


def test_what_a_stage_draws_depends_on_nothing_that_others_did(state: State) -> None:
    one, other = Dice(), Dice(name="other")
    state_before = torch.get_rng_state()
    run_stages([one, one, other, Told(one=lambda *_: {"x": float(torch.rand(100).sum())})], state, Journal())
    run_stages([other, one], state, Journal())
    assert one.cups[0] == one.cups[2] != one.cups[1], "repeated in one list it draws others"
    assert other.cups[0] == other.cups[1] != one.cups[0]
    assert torch.equal(state_before, torch.get_rng_state()), "the caller's are left alone"
    assert seed_of(3, "noise") == 3 != seed_of(3, "dice")


def test_what_is_left_out_is_not_told(state: State) -> None:
    class Silent(Told):
        recorded: ClassVar[bool] = False

    journal = Journal()
    run_stages([Told(steps=0), Silent(one=lambda *_: None), Told(name="last")], state, journal)
    assert [(r.name, r.steps) for r in journal.records] == [("last", 6)]


def test_a_loop_that_was_saved_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.1)

    def one(i: int) -> dict[str, float]:
        loss = net(torch.ones(8, 2) * i).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach())}

    loop = Loop(one, net, optimizer, schedule=lambda done: 1 - done)
    loop.step(0, 9)
    saved = loop.save()
    first = [loop.step(i, 9)["loss"] for i in (1, 2, 3)]
    loop.restore(saved)
    assert [loop.step(i, 9)["loss"] for i in (1, 2, 3)] == first
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - 3 / 9))
