"""Distillation end to end: outputs and feature maps of the student brought to the teacher's (PLF; Li et al. 2024)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zaq.config.constants import Amount, Count, Share
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.stages.synthesis import moves, shift
from zaq.stages.training import cosine, gain_optimizer, rate, student_optimizer, varied
from zaq.synth.losses import relative_discrepancy
from zaq.synth.swing import shifted

__all__ = ["Polish"]


@dataclass(frozen=True, kw_only=True)
class Polish(Stage):
    """Distil on the images given, shifted at random; or, where their pixels were not moved, on new ones at every step.

    Where a step sees too few images to choose better, the integers of weights stay as they were rounded, and what is
    learned is a gain for each channel, with ranges and biases (SandwichQuant, NAP, 2026; PROFIT, Park and Yoo 2020).
    """

    name: str = "polish"
    steps: Count = 200
    drawn: bool = False  # on new images at every step, whatever the teacher knows
    unpainted: Share = 0.5  # part of the images drawn anew that are dead leaves as they are
    feature: Amount = 1.0  # weight of the feature maps
    travel: Amount = 6.0  # steps of its grid that a weight may travel ...
    fastest: Amount = 6e-3  # ... at no more than this a step: at 2e-2 four bits gain more, and a student of two is lost
    lr_bias: Amount = 1e-4
    enough: Count = 16  # images a step that may round anew: at eight it forgets what rounding has learned; then ...
    gain: Amount = 3e-3  # ... gains and biases move by such a part of their size a step ...
    lr_range: Amount = 1e-2  # ... and the ends of ranges by so many steps of their grid

    look: ClassVar[int] = 5

    def judge(self, state: State) -> Callable[[], float] | None:
        return state.judge

    def start(self, state: State, journal: Journal) -> Loop:
        task, student = state.task, state.student
        if task.batch >= self.enough:
            lr = rate(self.travel, sum(cosine(i / self.steps) for i in range(self.steps)), self.fastest)
            optimizer = student_optimizer(student, lr, self.lr_bias)
        else:
            optimizer = gain_optimizer(student, self.gain, self.lr_range)
        p_tapped, q_tapped = task.teacher_at(task.taps), state.student_at(task.taps)

        def one(_: int) -> dict[str, float]:
            images = self._images(state)
            with torch.no_grad():
                p, wanted = p_tapped(images)
            q, found = q_tapped(images)
            loss = relative_discrepancy(p, q)
            if self.feature and wanted:
                gaps = [(b - a).pow(2).mean() / a.var().clamp(min=1e-12) for a, b in zip(wanted, found, strict=True)]
                loss = loss + self.feature * torch.stack(gaps).sum()
            task.work.step(optimizer, loss)
            return {"loss_q": float(loss.detach())}

        return Loop(one, student.module, optimizer, schedule=cosine, resumable=True)

    def _images(self, state: State) -> Tensor:
        """A batch (n, C, H, W) to learn on."""
        batch, given = state.task.batch, state.images
        if given is None or self.drawn or not moves(state.task):
            return varied(state.generator.draw(batch, self.unpainted), state.task.card)
        return shifted(given[torch.randint(len(given), (batch,))].to(state.task.device), shift(state.task))
