"""Fine-tuning on real images: what the data would have been worth. The reference line, and no data-free method.

    min CE(Q(x), y) + alpha T^2 KL(softmax(P(x) / T) || softmax(Q(x) / T))

for real images x and labels y (Hinton et al. 2015; the same optimizer and grids as ZAQ, so that the data is the
difference). It is the only method that is handed labels, or images of its own kind (`stages.proxy` has photographs of
anything for the recipe), and the report of a run says so. What a run stores stays synthetic all the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.config.constants import Amount, Count, Positive
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import BitsError, DataError
from zaq.methods.base import Method
from zaq.stages.calibrate import Calibrate
from zaq.stages.training import cosine, distillation, rate, student_optimizer

__all__ = ["FineTune"]

STEPS = {"fast": 100, "default": 600, "best": 6000}
HELD_OUT_BATCHES = 8
CALIBRATION_BATCHES = 8
NOISE_BATCHES = 4
REAL = (
    "trained on real images; held-out losses are on real training images. "
    "Only the samples stored for verification are noise."
)
Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N,)


@dataclass(frozen=True, kw_only=True)
class Take(Stage):
    """Take real images to calibrate on; what the run stores is uniform noise."""

    name: str = "take"
    batches: Iterator[Batch]

    recorded: ClassVar[bool] = False

    def once(self, state: State, journal: Journal) -> None:
        task = state.task
        journal.notes.append(REAL)
        low, high = task.card.bounds()
        count = NOISE_BATCHES * task.batch
        state.samples, state.held_out = (low + (high - low) * torch.rand(count, *task.card.input)).to(task.device), True
        state.images = torch.cat([next(self.batches)[0] for _ in range(CALIBRATION_BATCHES)]).to(task.device)


@dataclass(frozen=True, kw_only=True)
class Tune(Stage):
    """Distil on real images and learn their labels."""

    name: str = "ft"
    of: "FineTune"
    batches: Iterator[Batch]
    held_out: list[Batch]

    checks: ClassVar[int] = 8
    look: ClassVar[int] = 5

    def judge(self, state: State) -> Callable[[], float] | None:
        loss_of = self._loss(state)

        @torch.no_grad()
        def held_out_loss() -> float:
            return float(torch.stack([loss_of(*batch) for batch in self.held_out]).mean())

        return held_out_loss

    def start(self, state: State, journal: Journal) -> Loop:
        of, loss_of = self.of, self._loss(state)
        optimizer = student_optimizer(state.student, of.rate(self.steps), of.lr_bias, of.learn_scales)

        def one(_: int) -> dict[str, float]:
            loss = loss_of(*_checked(next(self.batches), state.task))
            state.task.work.step(optimizer, loss)
            return {"loss_q": float(loss.detach())}

        return Loop(one, state.student.module, optimizer, schedule=cosine)

    def _loss(self, state: State) -> Callable[[Tensor, Tensor], Tensor]:
        teacher, student = state.task.teacher_at(), state.student_at()

        def loss_of(images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                (p,), _ = teacher(images)
            (q,), _ = student(images)
            loss = self.of.alpha * distillation(q, p, self.of.temperature)
            return loss + F.cross_entropy(q, labels) if self.of.labels else loss

        return loss_of


@dataclass(frozen=True)
class FineTune(Method):
    """Real images in; ranges from them, then distillation and their labels."""

    alpha: Amount = 1.0  # weight of the distillation
    temperature: Positive = 4.0
    labels: bool = True  # False: distillation alone
    steps: Count | None = None
    travel: Amount = (
        0.6  # steps of its grid that a weight may travel (0.2 had a held-out loss of 0.535 after 600 steps, this 0.511)
    )
    lr_student: Amount | None = None  # Adam, in steps of each channel's grid; None: from `travel`
    lr_bias: Amount = 5e-5
    learn_scales: bool = True

    name: ClassVar[str] = "ft"
    reads_data: ClassVar[bool] = True

    def stages(self, task: Task, batches: Iterator[Batch] | None = None) -> list[Stage]:
        """Ranges, then training, on batches of images (N, C, H, W) and labels (N,), of which the first are held out."""
        if batches is None:
            raise DataError(
                "ft trains on real images and was handed none; name them with --data, or take --method zaq."
            )
        if task.classes is None:
            raise BitsError(
                "ft needs labels of whole images, and the model is no classifier; --method zaq needs neither."
            )
        held_out = [_checked(next(batches), task) for _ in range(HELD_OUT_BATCHES)]
        steps = STEPS[task.effort] if self.steps is None else self.steps
        tune = Tune(of=self, steps=steps, batches=batches, held_out=held_out)
        return [Take(batches=batches), Calibrate(), tune]

    def rate(self, steps: int) -> float:
        """The learning rate, in steps of each channel's grid."""
        if self.lr_student is not None:
            return self.lr_student
        return rate(self.travel, sum(cosine(i / steps) for i in range(steps)))


def _checked(batch: tuple[Tensor, Tensor], task: Task) -> tuple[Tensor, Tensor]:
    images, labels = batch
    classes = task.classes or 0
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"a label of the images is {int(labels.max())}, and the model knows the classes 0..{classes - 1}."
        )
    return images.to(task.device), labels.to(task.device)
