"""A stage is a value: a name, a number of steps, its constants, and what it does at each step.

A method is a list of stages; `engine.runner` alone runs them. A stage that is done at once overrides `once`. One that
has steps overrides `start`, which returns a `Loop`: everything that changes from step to step, as one object that can
be
saved and put back.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zaq.config.constants import Count, check_constants
from zaq.engine.journal import Journal
from zaq.engine.state import State

__all__ = ["Diverged", "Loop", "Stage", "numbers"]


class Diverged(Exception):
    """Raised by a step that finds itself gone wrong, in words that follow "since": the runner goes back."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A named part of a method. Its fields are its constants (`-s name.field=value`)."""

    name: str = ""  # in the report, in the log, and of the random numbers it draws
    steps: Count = 1  # 0 leaves the stage out

    recorded: ClassVar[bool] = True  # whether the report has a line for it
    cost: ClassVar[float] = 1.0  # of a step, about, in forward passes of a batch: for the time that is left
    checks: ClassVar[int] = 1  # how often a judge looks; the last look is at the end
    look: ClassVar[int] = 1  # steps between two states that can be gone back to
    # What is done of it after Ctrl-C, where that came in a stage before: nothing; "start": start and finish, so that
    # those that follow have what they need; or "run": all of it, and Ctrl-C does not end it either.
    after_ctrl_c: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_constants(self)

    def applies(self, state: State) -> bool:
        """Whether there is anything to do; what does not apply is not in the report."""
        return self.steps > 0

    def makes(self) -> tuple[str, ...]:
        """The fields of the state that it fills from the teacher and the seed alone, whatever the student is: what
        another run left there can stand in for it (`engine.images`).
        """
        return ()

    def length(self, state: State) -> int:
        """How many steps it takes, where that is not `steps`."""
        return self.steps

    def judge(self, state: State) -> Callable[[], float] | None:
        """The held-out loss by which this stage is kept or taken back; None: it stays, whatever it did."""
        return None

    def start(self, state: State, journal: Journal) -> "Loop":
        """Everything that the steps need and change."""
        return Loop(lambda _: self.once(state, journal))

    def once(self, state: State, journal: Journal) -> dict[str, float] | None:
        """What a stage of one step does; it may return losses by name."""
        raise NotImplementedError


class Loop:
    """What a stage does step by step, and the parts that change while it does.

    Args:
        step: takes the number of a step and returns its losses by name, which must be finite.
        parts: objects with state_dict and load_state_dict; optimizers among them have their rates scheduled.
        schedule: maps progress in [0, 1) to a factor on the learning rates.
        finish: hands on what was made; see the method.
        over: says why there is nothing left to do, before all steps are done; "" while there is.
        chooses: whether `finish` puts back the best state itself; then the judge looks once, when it has.
        resumable: whether the parts are all that steps change and later ones depend on, beside random numbers: then
            another process can go on from what `save` returns.
    """

    def __init__(
        self,
        step: Callable[[int], dict[str, float] | None],
        *parts: Any,
        schedule: Callable[[float], float] = lambda done: 1.0,
        finish: Callable[[], object] = lambda: None,
        over: Callable[[], str] = lambda: "",
        chooses: bool = False,
        resumable: bool = False,
    ) -> None:
        self._step, self.parts, self._schedule, self._finish, self._resumable = step, parts, schedule, finish, resumable
        self.over, self.chooses = over, chooses
        self.slower = 1.0  # what the runner has made every rate smaller by, after a loss that was not finite
        self._optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def step(self, i: int, of: int) -> dict[str, float]:
        """Step number `i` of `of`; its losses by name."""
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):  # `restore` puts other groups in place
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.slower * self._schedule(i / of)
        return self._step(i) or {}

    @property
    def resumable(self) -> bool:
        """Whether another process could go on from what `save` returns now."""
        return self._resumable

    def chapter(self, i: int) -> int:
        """Which part of the stage a step belongs to, where losses of different parts are not to be compared."""
        return 0

    def save(self) -> Any:
        """A copy of the parts that later steps do not touch."""
        return [copy.deepcopy(part.state_dict()) for part in self.parts]

    def restore(self, saved: Any) -> None:
        """Put back what `save` returned."""
        for part, state in zip(self.parts, saved, strict=True):
            part.load_state_dict(copy.deepcopy(state))

    def finish(self) -> None:
        """Hand on what was made; called once, also where the steps were broken off."""
        self._finish()


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    """Losses as numbers, for the log."""
    return {name: float(value.detach()) for name, value in losses.items()}
