"""A generator worth training on: the teacher's batch-norm statistics, classes, hard ones first, swinging convolutions.

    L_G = sum_l [mean and deviation of layer l against its batch norm] + beta mean (1 - p_y)^gamma CE(P(G(x, y)), y)

Batch-norm matching as ZeroQ's, (1 - p_y)^gamma as HAST's (Li et al. 2023, eq. 5): what is sure already is left alone,
so that images stay near the borders between classes. A teacher without batch norm excites its last feature map instead
(ZAQ's L_a); one without classes either leaves the generator as it is, and the adversarial stage to make what it can.

Images start from dead leaves, not from noise: those of a generator that starts from noise are too much alike, and what
a student learns on them it does not keep on others, however small the loss becomes. What the generator draws is then
refined: its pixels go down the same loss (ZeroQ, eq. 3; DeepInversion, eq. 2), from where they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.ir.taps import with_taps
from zaq.methods.job import Job, Stage
from zaq.methods.training import cosine, descend
from zaq.synth.distil import distil, shifted
from zaq.synth.generators import Generator
from zaq.synth.leaves import Painter
from zaq.synth.losses import activation_loss, batch_norm_loss
from zaq.synth.swing import with_swing

__all__ = ["Synthesis", "shift"]

SHIFTED = 16  # see `shift`
DRAWS_A_CLASS = 100  # that it takes to learn one; a short training draws from fewer classes, at random


@dataclass(frozen=True)
class Synthesis:
    """Constants of the generator and its training."""

    lr: float = (
        1e-2  # Adam, falling as a cosine (Genie: 1e-2). At 3e-3 short trainings end nearer, and teach students less
    )
    beta: float = 1.0  # weight of the classes
    gamma: float = 2.0  # how much less a sure sample counts (HAST: 2 on CIFAR)
    width: int = 32
    lr_pixels: float = 0.03  # Adam, of what is refined
    lr_noise: float = 0.1  # of what starts from noise
    together: int = 128  # images that are refined at once, to the statistics of all of them
    largest: int = (
        64  # pixels a side that are refined: those of 224 fit the statistics with patterns, and teach a student less
    )
    swing: bool = True

    def __call__(self, job: Job, steps: int, name: str = "synthesis") -> Painter:
        """A generator for `job.teacher`, trained for `steps` batches. Ctrl-C ends it with what it has learnt."""
        generator = Painter(job.card, self.width, job.classes)
        if job.classes is not None:
            learned = max(min(job.classes, steps * job.batch // DRAWS_A_CLASS), 2)
            generator.drawn = torch.randperm(job.classes)[:learned].sort().values
        if job.classes is None and not job.batch_norms():
            job.stages.append(
                Stage(
                    name,
                    0,
                    note="the teacher has neither batch norm nor classes: images are dead leaves, painted at random",
                )
            )
        else:
            self._train(job, generator, steps, name)
        return generator

    def refine(self, job: Job, images: Tensor, steps: int, name: str = "refine") -> Tensor:
        """Images (N, C, H, W) whose pixels have gone `steps` steps down the same loss, each batch with random classes.

        One generator cannot give every image what the teacher's batch norms remember; their pixels can take it. Images
        stay as they are, the same tensor, where no batch norm is known or they are too large, and those left when
        Ctrl-C comes.
        """
        if not self.refines(job, steps) or job.interrupted:
            return images
        losses_of, reach, stage = self._losses(job), shift(job), Stage(name, 0)
        job.stages.append(stage)
        parts = list(images.split(self.together))
        ticks = job.progress.track(name, steps * len(parts))

        def losses(x: Tensor) -> dict[str, Tensor]:
            next(ticks, None)
            return losses_of(shifted(x, reach), labels)

        for i, part in enumerate(parts):
            labels = torch.randint(job.classes, (len(part),)) if job.classes else None
            found = distil(part, losses, steps, self.lr_pixels, bounds=job.card.bounds(), name=name, log=job.log)
            parts[i], stage.note = found.images, found.note or stage.note
            stage.steps += found.steps
            if found.interrupted:
                job.interrupted = True
                stage.note = f"interrupted after {stage.steps} steps of {steps * len(parts)}"
                break
        return torch.cat(parts)

    def from_noise(self, job: Job, count: int, steps: int, name: str) -> Tensor:
        """Images (count, C, H, W) that noise becomes on the same way (ZeroQ), of any size: another kind than those a
        generator draws.
        """
        free = replace(self, lr_pixels=self.lr_noise, together=job.batch, largest=max(job.card.input[1:]))
        return free.refine(job, job.noise(count), steps, name)

    def moves(self, job: Job, steps: int) -> bool:
        """Whether pixels of any image are moved at all."""
        return bool(job.batch_norms()) and steps > 0

    def refines(self, job: Job, steps: int) -> bool:
        """Whether `refine` does anything."""
        return self.moves(job, steps) and max(job.card.input[1:]) <= self.largest

    def _train(self, job: Job, generator: Generator, steps: int, name: str) -> None:
        losses_of = self._losses(job)
        optimizer = torch.optim.Adam(generator.parameters(), self.lr)

        def losses(i: int) -> dict[str, Tensor]:
            optimizer.param_groups[0]["lr"] = self.lr * cosine(i / steps)
            return losses_of(*generator.sample(job.batch))

        descend(job, name, steps, optimizer, losses)

    def _losses(self, job: Job) -> Callable[[Tensor, Tensor | None], dict[str, Tensor]]:
        """The parts of L_G by name, as a function of images (N, C, H, W) and labels (N,)."""
        stats = job.batch_norms()
        teacher = with_taps(with_swing(job.teacher) if self.swing else job.teacher, [*stats] or job.taps[-1:])

        def losses(images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
            outputs, features = teacher(images)
            found = {}
            if stats:
                found["batch_norm"] = batch_norm_loss(features, list(stats.values()))
            elif features:
                found["activation"] = activation_loss(features[-1])
            if labels is not None and self.beta:
                found["classes"] = self.beta * self._hard(outputs[0], labels)
            return found

        return losses

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = -F.cross_entropy(logits, labels, reduction="none")
        weight = (1 - log_p.detach().exp()) ** self.gamma
        return -(weight * log_p).mean()


def shift(job: Job) -> int:
    """Pixels that images are shifted by, at most, wherever refined ones are looked at: a sixteenth of a side."""
    return min(job.card.input[1:]) // SHIFTED
