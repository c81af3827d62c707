"""A generator worth training on: the teacher's batch-norm statistics, classes, hard ones first, swinging convolutions.

    L_G = sum_l [mean and deviation of layer l against its batch norm] + beta mean (1 - p_y)^gamma CE(P(G(x, y)), y)

Batch-norm matching as ZeroQ's, (1 - p_y)^gamma as HAST's (Li et al. 2023, eq. 5): what is sure already is left alone, so
that images stay near the borders between classes. A teacher without batch norm excites its last feature map instead
(ZAQ's L_a); one without classes either leaves the generator as it is, and the adversarial stage to make what it can.

Images start from dead leaves, not from noise: those of a generator that starts from noise are too much alike, and what
a student learns on them it does not keep on others, however small the loss becomes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.graph import with_taps
from zaq.methods.job import Job, Stage
from zaq.methods.training import cosine, descend
from zaq.synth.generators import Generator
from zaq.synth.leaves import Painter
from zaq.synth.losses import activation_loss, batch_norm_loss
from zaq.synth.swing import with_swing

__all__ = ["Synthesis"]

DRAWS_A_CLASS = 100  # that it takes to learn one; a short training draws from fewer classes, at random


@dataclass(frozen=True)
class Synthesis:
    """Constants of the generator and its training."""

    lr: float = 1e-2  # Adam, falling as a cosine (Genie: 1e-2). At 3e-3 short trainings end nearer, and teach students less
    beta: float = 1.0  # weight of the classes
    gamma: float = 2.0  # how much less a sure sample counts (HAST: 2 on CIFAR)
    width: int = 32
    swing: bool = True

    def __call__(self, job: Job, steps: int, name: str = "synthesis") -> Painter:
        """A generator for `job.teacher`, trained for `steps` batches. Ctrl-C ends it with what it has learnt."""
        generator = Painter(job.card, self.width, job.classes)
        if job.classes is not None:
            learned = max(min(job.classes, steps * job.batch // DRAWS_A_CLASS), 2)
            generator.drawn = torch.randperm(job.classes)[:learned].sort().values
        if job.classes is None and not job.batch_norms():
            job.stages.append(
                Stage(name, 0, note="the teacher has neither batch norm nor classes: images are dead leaves, painted at random")
            )
        else:
            self._train(job, generator, steps, name)
        return generator

    def _train(self, job: Job, generator: Generator, steps: int, name: str) -> None:
        stats = job.batch_norms()
        teacher = with_taps(with_swing(job.teacher) if self.swing else job.teacher, [*stats] or job.taps[-1:])
        optimizer = torch.optim.Adam(generator.parameters(), self.lr)

        def losses(i: int) -> dict[str, Tensor]:
            optimizer.param_groups[0]["lr"] = self.lr * cosine(i / steps)
            images, labels = generator.sample(job.batch)
            outputs, features = teacher(images)
            found = {}
            if stats:
                found["batch_norm"] = batch_norm_loss(features, list(stats.values()))
            elif features:
                found["activation"] = activation_loss(features[-1])
            if labels is not None and self.beta:
                found["classes"] = self.beta * self._hard(outputs[0], labels)
            return found

        descend(job, name, steps, optimizer, losses)

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = -F.cross_entropy(logits, labels, reduction="none")
        weight = (1 - log_p.detach().exp()) ** self.gamma
        return -(weight * log_p).mean()
