"""Fine-tuning on real images: what the data would have been worth. The reference line, and no data-free method.

    min CE(Q(x), y) + alpha T^2 KL(softmax(P(x) / T) || softmax(Q(x) / T))

for real images x and labels y (Hinton et al. 2015; the same optimizer and grids as ZAQ, so that the data is the
difference). It is the only method that is handed any, and the report of a run says so. What a run stores stays
synthetic all the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.errors import BitsError, DataError
from zaq.methods.job import Job
from zaq.methods.loop import Game, play
from zaq.methods.training import cosine, distillation, rate, step, student_optimizer

__all__ = ["FineTune"]

STEPS = {"fast": 100, "default": 600, "best": 6000}
STEPS_A_ROUND = 5  # between two looks at whether the loss is still a number
HELD_OUT_BATCHES = 8
CALIBRATION_BATCHES = 8
NOISE_BATCHES = 4


@dataclass(frozen=True)
class FineTune:
    """Real images in; ranges from them, then distillation and their labels."""

    alpha: float = 1.0  # weight of the distillation
    temperature: float = 4.0
    labels: bool = True  # False: distillation alone
    steps: int | None = None
    travel: float = (
        0.6  # steps of its grid that a weight may travel (0.2 had a held-out loss of 0.535 after 600 steps, this 0.511)
    )
    lr_student: float | None = None  # Adam, in steps of each channel's grid; None: from `travel`
    lr_bias: float = 5e-5
    learn_scales: bool = True

    name = "ft"
    reads_data = True  # no field, hence no -s: it is what the method is

    def __call__(self, job: Job, batches: Iterator[tuple[Tensor, Tensor]] | None) -> None:
        """Quantize `job.student` in place on batches of images (N, C, H, W) and labels (N,), of which the first are
        held out.
        """
        if batches is None:
            raise DataError(
                "ft trains on real images and was handed none; name them with --data, or take --method zaq."
            )
        if job.classes is None:
            raise BitsError(
                "ft needs labels of whole images, and the model is no classifier; --method zaq needs neither."
            )
        job.notes.append(
            "trained on real images; held-out losses are on real training images. Only the samples stored for verification are noise."
        )
        low, high = job.card.bounds()
        job.samples = low + (high - low) * torch.rand(NOISE_BATCHES * job.batch, *job.card.input)
        held_out = [_checked(next(batches), job) for _ in range(HELD_OUT_BATCHES)]
        job.calibrate((next(batches)[0] for _ in range(CALIBRATION_BATCHES)), CALIBRATION_BATCHES)
        self._train(job, batches, STEPS[job.effort] if self.steps is None else self.steps, held_out)

    def _train(
        self, job: Job, batches: Iterator[tuple[Tensor, Tensor]], steps: int, held_out: list[tuple[Tensor, Tensor]]
    ) -> None:
        rounds = -(-steps // STEPS_A_ROUND)
        optimizer = student_optimizer(job, self._rate(steps), self.lr_bias, self.learn_scales)

        def loss_of(images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                p = job.teacher(images)
            q = job.student(images)
            loss = self.alpha * distillation(q, p, self.temperature)
            return loss + F.cross_entropy(q, labels) if self.labels else loss

        def one_round(game: Game) -> dict[str, float]:
            losses = []
            for _ in range(STEPS_A_ROUND):
                loss = loss_of(*_checked(next(batches), job))
                step(optimizer, loss)
                losses.append(float(loss.detach()))
            return {"loss_q": sum(losses) / len(losses)}

        @torch.no_grad()
        def held_out_loss() -> float:
            return float(torch.stack([loss_of(*batch) for batch in held_out]).mean())

        play(job, Game(job.student, None, optimizer, None), rounds, one_round, cosine, held_out_loss, "ft")

    def _rate(self, steps: int) -> float:
        return (
            self.lr_student
            if self.lr_student is not None
            else rate(self.travel, sum(cosine(i / steps) for i in range(steps)))
        )


def _checked(batch: tuple[Tensor, Tensor], job: Job) -> tuple[Tensor, Tensor]:
    images, labels = batch
    classes = job.classes or 0
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"a label of the images is {int(labels.max())}, and the model knows the classes 0..{classes - 1}."
        )
    return images, labels
