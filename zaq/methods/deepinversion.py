"""DeepInversion, and its adaptive form (Yin, Molchanov, Li, Alvarez, Mallya, Hoiem, Jha, Kautz; CVPR 2020).

Images are optimised from noise until the teacher takes them for the classes they were meant to be, as ordinary images:

    min over x of  CE(P(x), y) + a_tv R_TV(x) + a_l2 R_l2(x) + a_f R_feature(x)          (eq. 2 to 5)
    adaptive:      ... + a_c (1 - JS(P(x), Q(x)))                                        (eq. 6 to 8)

with R_feature over the teacher's batch norms. The first round sets ranges; the second is adaptive, against the student
these ranges make. On both the student is then distilled. The paper prunes and teaches students of their own; that the
student is the teacher quantized, and the order of the rounds, are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.errors import BitsError, SourceError, unknown
from zaq.ir.taps import with_taps
from zaq.methods.job import Job, Stage
from zaq.methods.loop import Game, play
from zaq.methods.training import cosine, distillation, frozen, rate, step, student_optimizer
from zaq.quant.observers import OBSERVERS
from zaq.synth.distil import distil, shifted
from zaq.synth.losses import batch_statistics_loss, jensen_shannon, l2_prior, output_discrepancy, total_variation

__all__ = ["DeepInversion"]

# effort: iterations a round, batches of images a round, steps of the student; best is the paper's where it has one
STEPS = {"fast": (50, 1, 50), "default": (150, 2, 300), "best": (2000, 4, 2000)}
STEPS_A_ROUND = 5  # of the student, between two looks at whether the loss is still a number
HELD_OUT = 0.25  # part of the images


@dataclass(frozen=True)
class DeepInversion:
    """The constants of the paper's CIFAR-10 experiments (readme of the code). `None`: set by the effort."""

    steps: int | None = None  # iterations a round (paper: 2000)
    images: int | None = None  # a round, optimised together (paper: 256)
    lr: float = 0.05  # Adam, on pixels (code: 0.1 for its better images)
    feature: float = 10.0  # a_f, of the statistics
    tv: float = 2.5e-5  # a_tv (code: 1e-3 for its better images)
    l2: float = 3e-8  # a_l2 (code: 0 for its better images)
    competition: float = 10.0  # a_c; 0: no second round (paper: 0.2 on ImageNet)
    jitter: int = 2  # pixels that images are shifted by before every look, and mirrored every other time
    clip: bool = True  # keep pixels where pixels lie (as the code does on ImageNet)
    observer: str = "mse"  # one of OBSERVERS
    finetune: int | None = None  # steps of the student; 0: ranges only
    temperature: float = 3.0  # of the divergences
    travel: float = 0.2  # steps of its grid that a weight may travel while fine-tuned
    lr_bias: float = 5e-5

    def __post_init__(self) -> None:
        if self.observer not in OBSERVERS:
            raise BitsError("observer: " + unknown("observer", self.observer, OBSERVERS))

    def __call__(self, job: Job) -> None:
        """Quantize `job.student` in place: draw, calibrate, draw against the student, distil."""
        _, _, finetune = STEPS[job.effort]
        steps = finetune if self.finetune is None else self.finetune
        images = self._draw(job, "distil")
        job.samples = images
        parts = images.split(job.batch)
        job.calibrate(parts, len(parts), self.observer)
        if not steps or job.interrupted:
            return
        if self.competition and job.classes is not None:
            with frozen(job.student):
                images = torch.cat([images, self._draw(job, "compete", self.competition)])
        if not job.interrupted:
            self._finetune(job, images, steps)

    def _draw(self, job: Job, name: str, competition: float = 0.0) -> Tensor:
        """Images (N, C, H, W) of all classes in turn, in an order of their own, against the student if it competes."""
        stats = job.batch_norms()
        if not stats and job.classes is None:
            raise SourceError(
                "deepinversion needs batch norms or classes, and this model has neither; --method zaq does without."
            )
        steps, batches, _ = STEPS[job.effort]
        count = batches * job.batch if self.images is None else self.images
        labels = (torch.arange(count) % job.classes)[torch.randperm(count)] if job.classes else None
        teacher, student = with_taps(job.teacher, list(stats)), with_taps(job.student, [])

        def losses(x: Tensor) -> dict[str, Tensor]:
            x = shifted(x, self.jitter)
            outputs, features = teacher(x)
            found = {"tv": self.tv * total_variation(x), "l2": self.l2 * l2_prior(x)}
            if labels is not None:
                found["cross_entropy"] = F.cross_entropy(outputs[0], labels)
            if features:
                found["feature"] = self.feature * batch_statistics_loss(features, list(stats.values()))
            if competition:
                found["compete"] = competition * (1 - jensen_shannon(outputs[0], student(x)[0][0], self.temperature))
            return found

        found = distil(
            torch.randn(count, *job.card.input),
            losses,
            steps if self.steps is None else self.steps,
            self.lr,
            bounds=job.card.bounds() if self.clip else None,
            name=name,
            progress=job.progress,
            log=job.log,
        )
        job.interrupted |= found.interrupted
        job.stages.append(Stage(name, found.steps, note=found.note))
        return job.in_bounds(found.images)

    def _finetune(self, job: Job, images: Tensor, steps: int) -> None:
        """Distil the student on a part of the images, and keep that only if it serves the rest."""
        images = images[torch.randperm(len(images))]
        count = max(int(HELD_OUT * len(images)), 1)
        held_out, training = images[:count].split(job.batch), images[count:]
        job.samples = images[:count]
        rounds = -(-steps // STEPS_A_ROUND)
        learning_rate = rate(self.travel, STEPS_A_ROUND * sum(cosine(i / rounds) for i in range(rounds)))
        optimizer = student_optimizer(job, learning_rate, self.lr_bias)
        teacher, student = with_taps(job.teacher, []), with_taps(job.student, [])

        def loss_of(x: Tensor) -> Tensor:
            with torch.no_grad():
                p = teacher(x)[0]
            q = student(x)[0]
            return distillation(q[0], p[0], self.temperature) if job.classes else output_discrepancy(p, q)

        def one_round(game: Game) -> dict[str, float]:
            losses = []
            for _ in range(STEPS_A_ROUND):
                loss = loss_of(shifted(training[torch.randint(len(training), (job.batch,))], self.jitter))
                step(optimizer, loss)
                losses.append(float(loss.detach()))
            return {"loss_q": sum(losses) / len(losses)}

        @torch.no_grad()
        def held_out_loss() -> float:
            return float(torch.stack([loss_of(x) * len(x) for x in held_out]).sum()) / count

        play(job, Game(job.student, None, optimizer, None), rounds, one_round, cosine, held_out_loss, "finetune")
