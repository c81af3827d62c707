"""DeepInversion, and its adaptive form (Yin, Molchanov, Li, Alvarez, Mallya, Hoiem, Jha, Kautz; CVPR 2020).

Images are optimised from noise until the teacher takes them for the classes they were meant to be, as ordinary images:

    min over x of  CE(P(x), y) + a_tv R_TV(x) + a_l2 R_l2(x) + a_f R_feature(x)          (eq. 2 to 5)
    adaptive:      ... + a_c (1 - JS(P(x), Q(x)))                                        (eq. 6 to 8)

with R_feature over the teacher's batch norms. The first round sets ranges; the second is adaptive, against the student
these ranges make. On both the student is then distilled. The paper prunes and teaches students of their own; that the
student is the teacher quantized, and the order of the rounds, are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.config.constants import Amount, Count, OneOrMore, Positive
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import SourceError
from zaq.methods.base import Method
from zaq.quant.observers import Observer
from zaq.stages.calibrate import Calibrate
from zaq.stages.pixels import Pixels
from zaq.stages.training import cosine, distillation, frozen, rate, student_optimizer
from zaq.synth.losses import (
    batch_statistics_loss,
    channel_moments,
    jensen_shannon,
    l2_prior,
    output_discrepancy,
    total_variation,
)
from zaq.synth.swing import shifted

__all__ = ["DeepInversion"]

# effort: iterations a round, batches of images a round, steps of the student; best is the paper's where it has one
STEPS = {"fast": (50, 1, 50), "default": (150, 2, 300), "best": (2000, 4, 2000)}
HELD_OUT = 0.25  # part of the images


@dataclass(frozen=True, kw_only=True)
class Invert(Stage):
    """Draw images of all classes in turn, in an order of their own; against the student, if it competes."""

    name: str = "distil"
    of: "DeepInversion"
    competition: Amount = 0.0

    look: ClassVar[int] = 5

    def makes(self) -> tuple[str, ...]:
        return () if self.competition else ("images", "samples")

    def applies(self, state: State) -> bool:
        return True

    def start(self, state: State, journal: Journal) -> Loop:
        of, task = self.of, state.task
        classes, count = task.classes, of.count(task)
        labels = (torch.arange(count) % classes)[torch.randperm(count)].to(task.device) if classes else None
        losses = self._losses(state, labels)
        low, high = (task.card.standard(end) for end in task.card.bounds(task.device))

        def finish() -> None:
            images = task.card.in_bounds(task.card.images(torch.cat(loop.images)))
            state.images = torch.cat([state.images.to(task.device), images]) if state.images is not None else images
            if state.samples is None:
                state.samples, state.held_out = images, False

        start = torch.randn(count, *task.card.input).to(task.device)
        loop = Pixels(
            start,
            lambda _: losses,
            self.steps,
            of.lr,
            task.work,
            bounds=(low, high) if of.clip else None,
            finish=finish,
        )
        return loop

    def _losses(self, state: State, labels: Tensor | None) -> Callable[[Tensor], dict[str, Tensor]]:
        of, stats, card = self.of, state.task.batch_norms(), state.task.card
        teacher = state.task.teacher_at(list(stats), of=channel_moments)
        student = state.student_at() if self.competition else None

        def losses(z: Tensor) -> dict[str, Tensor]:  # of mean 0 and deviation 1, whatever pixels the teacher reads
            z = shifted(z, of.jitter)
            x = card.images(z)
            outputs, moments = teacher(x)
            found = {"tv": of.tv * total_variation(z), "l2": of.l2 * l2_prior(z)}
            if labels is not None:
                found["cross_entropy"] = F.cross_entropy(outputs[0], labels)
            if moments:
                found["feature"] = of.feature * batch_statistics_loss(moments, list(stats.values()))
            if student is not None:
                with frozen(state.student.module):
                    apart = jensen_shannon(outputs[0], student(x)[0][0], of.temperature)
                found["compete"] = self.competition * (1 - apart)
            return found

        return losses


@dataclass(frozen=True, kw_only=True)
class HoldSomeOut(Stage):
    """Hold a part of the images out, at random."""

    name: str = "hold out"

    recorded: ClassVar[bool] = False

    def once(self, state: State, journal: Journal) -> None:
        assert state.images is not None
        images = state.images[torch.randperm(len(state.images))].to(state.task.device)
        count = max(int(HELD_OUT * len(images)), 1)
        state.samples, state.images, state.held_out = images[:count], images[count:], True


@dataclass(frozen=True, kw_only=True)
class Tune(Stage):
    """Distil the student on the images, and keep that only if it serves those held out."""

    name: str = "finetune"
    of: "DeepInversion"

    checks: ClassVar[int] = 8
    look: ClassVar[int] = 5

    def judge(self, state: State) -> Callable[[], float] | None:
        assert state.samples is not None
        loss_of, samples = self._loss(state), state.samples

        @torch.no_grad()
        def held_out_loss() -> float:
            parts = samples.split(state.task.batch)
            return float(torch.stack([loss_of(x) * len(x) for x in parts]).sum()) / len(samples)

        return held_out_loss

    def start(self, state: State, journal: Journal) -> Loop:
        of, task, training = self.of, state.task, state.images
        assert training is not None
        lr = rate(of.travel, sum(cosine(i / self.steps) for i in range(self.steps)))
        optimizer, loss_of = student_optimizer(state.student, lr, of.lr_bias), self._loss(state)

        def one(_: int) -> dict[str, float]:
            chosen = training[torch.randint(len(training), (task.batch,))].to(task.device)
            loss = loss_of(shifted(chosen, of.jitter))
            task.work.step(optimizer, loss)
            return {"loss_q": float(loss.detach())}

        return Loop(one, state.student.module, optimizer, schedule=cosine, resumable=True)

    def _loss(self, state: State) -> Callable[[Tensor], Tensor]:
        teacher, student = state.task.teacher_at(), state.student_at()

        def loss_of(x: Tensor) -> Tensor:
            with torch.no_grad():
                p = teacher(x)[0]
            q = student(x)[0]
            return distillation(q[0], p[0], self.of.temperature) if state.task.classes else output_discrepancy(p, q)

        return loss_of


@dataclass(frozen=True)
class DeepInversion(Method):
    """The constants of the paper's CIFAR-10 experiments (readme of the code). `None`: set by the effort."""

    steps: Count | None = None  # iterations a round (paper: 2000)
    images: OneOrMore | None = None  # a round, optimised together (paper: 256)
    lr: Amount = 0.05  # Adam, on pixels (code: 0.1 for its better images)
    feature: Amount = 10.0  # a_f, of the statistics
    tv: Amount = 2.5e-5  # a_tv (code: 1e-3 for its better images)
    l2: Amount = 3e-8  # a_l2 (code: 0 for its better images)
    competition: Amount = 10.0  # a_c; 0: no second round (paper: 0.2 on ImageNet)
    jitter: Count = 2  # pixels that images are shifted by before every look, and mirrored every other time
    clip: bool = True  # keep pixels where pixels lie (as the code does on ImageNet)
    observer: Observer = "mse"  # one of OBSERVERS
    finetune: Count | None = None  # steps of the student; 0: ranges only
    temperature: Positive = 3.0  # of the divergences
    travel: Amount = 0.2  # steps of its grid that a weight may travel while fine-tuned
    lr_bias: Amount = 5e-5

    name: ClassVar[str] = "deepinversion"
    parts: ClassVar[tuple[type[Stage], ...]] = (Calibrate,)

    def stages(self, task: Task) -> list[Stage]:
        """Draw, calibrate, draw against the student, distil. Raises SourceError where nothing is known of images."""
        if not task.batch_norms() and task.classes is None:
            raise SourceError(
                "deepinversion needs batch norms or classes, and this model has neither; --method zaq does without."
            )
        steps, _, finetune = STEPS[task.effort]
        steps, finetune = (
            self.steps if self.steps is not None else steps,
            (self.finetune if self.finetune is not None else finetune),
        )
        stages: list[Stage] = [Invert(of=self, steps=steps), Calibrate(observer=self.observer)]
        if not finetune:
            return stages
        if self.competition and task.classes is not None:
            stages.append(Invert(name="compete", of=self, steps=steps, competition=self.competition))
        return [*stages, HoldSomeOut(), Tune(of=self, steps=finetune)]

    def count(self, task: Task) -> int:
        """Images of a round."""
        return STEPS[task.effort][1] * task.batch if self.images is None else self.images
