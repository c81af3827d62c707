"""Bias correction as a stage: what rounding shifts the means of layers by, taken back (`stats.bias`)."""

from collections.abc import Callable
from dataclasses import dataclass

from zaq.compute.devices import CPU
from zaq.engine.journal import Journal
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.ir.move import on
from zaq.stats.bias import correct_analytically, correct_empirically
from zaq.stats.moments import moments

__all__ = ["CorrectBiases"]


@dataclass(frozen=True, kw_only=True)
class CorrectBiases(Stage):
    """Correct the student's biases, from images or from what batch norm knows."""

    name: str = "bias correction"
    analytic: bool = False  # from batch norm's statistics; else measured on the images that are learned on
    mean_only: bool = False  # analytic: for the mean error of each output channel, as ACIQ corrects weights
    judged: bool = True  # keep it only if the held-out loss says so
    tell: bool = False  # note which of the two it was

    def judge(self, state: State) -> Callable[[], float] | None:
        return state.judge if self.judged else None

    def once(self, state: State, journal: Journal) -> None:
        task, student = state.task, state.student
        if self.analytic:
            known = moments(on(task.teacher, CPU), task.card)
            correct_analytically(task.teacher, student.module, student.placement, known, self.mean_only)
        else:
            assert state.images is not None
            correct_empirically(task.teacher, student.module, state.images[: task.few])
        if self.tell:
            journal.records[-1].say("analytic" if self.analytic else "empirical")
