"""Generative Low-bitwidth Data Free Quantization (Xu, Li, Zhuang, Liu, Cao, Liang, Tan; ECCV 2020).

A generator G learns to draw, for a label y, images that the float teacher P takes for y and that have the statistics
its batch norms know; the quantized student Q learns from the same images:

    G: min CE(P(x), y) + beta L_BNS,   x = G(z, y)
    Q: min CE(Q(x), y) + alpha T^2 KL(softmax(P(x) / T) || softmax(Q(x) / T))

In the first epochs G learns alone; activation ranges are moving averages over what it draws there, and stay. The
weights' grids reach from their least to their greatest value, before every forward. Where the released code
(github.com/xushoukai/GDFQ) draws ImageNet's classes by conditional batch norm, this multiplies z by an embedding of y,
as it does for CIFAR's. The code's Q also learns batch norm's gamma, which moves a channel's weights together and is
left out here; its beta is the folded bias.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.errors import BitsError, unknown
from zaq.ir.nodes import attribute
from zaq.ir.ops import TRANSPOSED
from zaq.ir.taps import with_taps
from zaq.methods.job import Job, Stage
from zaq.methods.loop import Game, play
from zaq.methods.training import distillation, step
from zaq.passes.fold import BatchNormStats
from zaq.quant.placement import make_room
from zaq.synth.generators import DCGAN
from zaq.synth.losses import channel_moments

__all__ = ["GDFQ", "FoldedSGD", "folded_gains", "statistics_loss"]

WARM_UP = 100  # steps that G learns alone, at least: ranges are read from what it draws by then
LARGE, MANY = 64, 1000  # pixels a side or classes from which the paper's choices for ImageNet hold
STEPS_A_ROUND = 5  # between two looks at whether the loss is still a number
HELD_OUT_BATCHES = 4
REDUCTIONS = ("batchmean", "mean")
DEAD = 0.01  # of a layer's largest gamma: a channel below has no scale of its own

Draw = Callable[[], tuple[Tensor, Tensor, Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Plan:
    """What depends on effort and size."""

    epochs: int
    iterations: int  # of an epoch
    batch: int  # 0: the job's
    warm_up: float
    lr_student: float
    lr_generator: float
    width: int


# effort: for small images, for ImageNet's. `best` is the paper's. What is hundreds of times shorter takes longer steps.
# They were chosen on the shipped ResNet-20 at w4a4 by synthetic losses: in 60 steps of 1e-4, 3e-4, 1e-3 and 3e-3 a
# student's held-out KL went from 3.41 to 1.12, 1.10, 4.09 and 4.31, and a generator of width 32 came to a cross-entropy
# of 2.6, 1.9 and 2.5 in 120 steps of 1e-3, 3e-3 and 1e-2. Those for ImageNet's follow from them; nothing was measured
# there.
PLANS = {
    "fast": (Plan(32, 5, 0, 0.01, 3e-4, 3e-3, 32), Plan(32, 5, 0, 0.125, 3e-6, 3e-3, 32)),
    "default": (Plan(110, 5, 0, 0.01, 3e-4, 3e-3, 32), Plan(110, 5, 0, 0.125, 3e-6, 3e-3, 32)),
    "best": (Plan(400, 200, 200, 0.01, 1e-4, 1e-3, 128), Plan(400, 200, 16, 0.125, 1e-6, 1e-3, 128)),
}


@dataclass(frozen=True)
class GDFQ:
    """The paper's constants; where its released code has others they are named. `None`: see PLANS."""

    alpha: float = 1.0  # weight of the distillation ...
    temperature: float = 20.0
    reduction: str = (
        "batchmean"  # ... a mean over samples (code: "mean", over classes too: its weight is T^2 / K = 40, 4, 0.4)
    )
    beta: float = 0.1  # weight of the batch norms' statistics
    epochs: int | None = None  # 400 at `best`
    iterations: int | None = None  # of an epoch; 200 at `best`
    batch: int | None = None  # 200 (ImageNet: 16) at `best`
    warm_up: float | None = None  # part of the epochs before the student starts: 4 (ImageNet: 50) of 400
    calibration: float = 0.01  # part of the epochs in which ranges are read: 4 of 400
    milestones: tuple[float, ...] = (
        1 / 4,
        1 / 2,
        3 / 4,
    )  # parts of the epochs after which every step is ten times smaller
    lr_student: float | None = None  # 1e-4 (ImageNet: 1e-6) at `best`
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 1e-4
    lr_generator: float | None = None  # 1e-3 at `best`; Adam with betas (0.5, 0.999)
    latent: int = 100
    width: int | None = None  # of the generator, 128 at `best`

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise BitsError("reduction: " + unknown("reduction", self.reduction, REDUCTIONS))

    def __call__(self, job: Job) -> None:
        """Quantize `job.student` in place: G learns alone while ranges are read, then both learn."""
        lacks = {
            "is no classifier": job.classes is None,
            "has no batch norm that could be folded": not job.batch_norms(),
        }
        if any(lacks.values()):
            missing = " and ".join(what for what, lacking in lacks.items() if lacking)
            raise BitsError(
                f"gdfq draws images from classes and batch-norm statistics; the model {missing}. --method zaq needs neither."
            )
        plan = self._plan(job)
        generator = DCGAN(job.card, self.latent, plan.width, job.classes, doublings=2, eps=0.8, tanh=True)
        optimizer = torch.optim.Adam(generator.parameters(), plan.lr_generator, (0.5, 0.999))
        draw = self._drawing(job, generator, optimizer, plan.batch)
        steps = plan.epochs * plan.iterations
        alone = max(round(plan.warm_up * steps), WARM_UP if self.warm_up is None else 1)
        self._warm_up(job, draw, alone, watched=max(round(self.calibration * steps), WARM_UP))
        with torch.no_grad():
            held_out = [generator.draw(job.batch) for _ in range(HELD_OUT_BATCHES)]
        job.samples = torch.cat(held_out)
        if not job.interrupted:
            rounds = max(-(-(steps - alone) // STEPS_A_ROUND), 0)
            game = Game(job.student, generator, self._student_optimizer(job, plan.lr_student), optimizer)
            self._play(job, game, draw, rounds, plan.warm_up, held_out)

    def _warm_up(self, job: Job, draw: Draw, steps: int, watched: int) -> None:
        """G alone; the student watches what it draws in the first `watched` steps, and its ranges are frozen there."""
        stage = Stage("warm-up", 0)
        job.stages.append(stage)
        try:
            with ExitStack() as watching:
                watching.enter_context(job.calibrating("ema"))
                for i in job.progress.track("warm-up", steps):
                    if i == watched:
                        watching.close()
                    images, _, _, losses = draw()
                    if not math.isfinite(losses["loss_g"]):
                        stage.note = f"stopped at step {i} of {steps}: the loss became NaN"
                        break
                    if i < watched:
                        _watch(job, images)
                    stage.steps = i + 1
                    job.log("warm-up", i, **losses)
        except KeyboardInterrupt:
            job.interrupted = True
            stage.note = f"interrupted after step {stage.steps} of {steps}"
        _set_grids(job)

    def _play(self, job: Job, game: Game, draw: Draw, rounds: int, start: float, held_out: list[Tensor]) -> None:
        def one_round(game: Game) -> dict[str, float]:
            losses: dict[str, float] = {}
            for _ in range(STEPS_A_ROUND):
                images, labels, p, losses = draw()
                q = job.student(images)
                cross_entropy, kl = F.cross_entropy(q, labels), distillation(q, p, self.temperature, self.reduction)
                step(game.optimizer_q, cross_entropy + self.alpha * kl)
                _set_grids(job)
                losses |= {"cross_entropy_q": float(cross_entropy.detach()), "kl_q": float(kl.detach())}
            return losses

        def schedule(progress: float) -> float:
            done = start + (1 - start) * progress
            return float(0.1 ** sum(done >= m for m in self.milestones))

        @torch.no_grad()
        def held_out_loss() -> float:
            return float(
                torch.stack([distillation(job.student(x), job.teacher(x), self.temperature) for x in held_out]).mean()
            )

        play(job, game, rounds, one_round, schedule, held_out_loss, "gdfq")

    def _drawing(self, job: Job, generator: DCGAN, optimizer: torch.optim.Optimizer, batch: int) -> Draw:
        """A step of G as a function: draws, learns from it, and returns images, labels, the teacher's logits, and
        losses.
        """
        stats = job.batch_norms()
        teacher = with_taps(job.teacher, list(stats))

        def draw() -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
            images, labels = generator.sample(batch)
            assert labels is not None
            (p,), features = teacher(images)
            cross_entropy, bns = F.cross_entropy(p, labels), statistics_loss(features, list(stats.values()))
            loss = cross_entropy + self.beta * bns
            if math.isfinite(loss.detach()):
                step(optimizer, loss)
            found = {"loss_g": loss, "cross_entropy": cross_entropy, "statistics": bns}
            return images.detach(), labels, p.detach(), {k: float(v.detach()) for k, v in found.items()}

        return draw

    def _student_optimizer(self, job: Job, lr: float) -> torch.optim.Optimizer:
        """Weights and biases by SGD, scales not at all. What batch norm's mean put into a bias does not decay."""
        for quantizer in (*job.placement.weights.values(), *job.placement.activations.values()):
            quantizer.scale.requires_grad_(False)
        gains = folded_gains(job)
        bare = {id(attribute(job.student, str(n.args[2].target))) for n in job.teacher.graph.nodes if "bn" in n.meta}
        learned = [p for p in job.student.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learned if id(p) not in bare]},
            {"params": [p for p in learned if id(p) in bare], "weight_decay": 0.0},
        ]
        return FoldedSGD(groups, gains, lr=lr, momentum=self.momentum, nesterov=True, weight_decay=self.weight_decay)

    def _plan(self, job: Job) -> Plan:
        """The plan for this effort and size, with the fields that were set in place of its own."""
        large = max(job.card.input[1:]) > LARGE or (job.classes or 0) >= MANY
        plan = PLANS[job.effort][large]
        chosen = {f.name: getattr(self, f.name) for f in fields(plan) if getattr(self, f.name) is not None}
        return replace(plan, **({"batch": plan.batch or job.batch} | chosen))


class FoldedSGD(torch.optim.SGD):
    """SGD that moves folded weights as SGD on the weights before folding would have moved them.

    Folding made w' = g w of a channel, with g = gamma / sqrt(var + eps), so that dL/dw = g dL/dw'. The paper's step

        w <- w - lr (dL/dw + decay w)    is, times g,    w' <- w' - lr (g^2 dL/dw' + decay w')

    The gradient takes g^2, the decay nothing; momentum is linear in both. `gains`: a parameter -> g^2, which
    broadcasts.
    """

    def __init__(self, groups: list[dict[str, Any]], gains: dict[nn.Parameter, Tensor], **options: Any) -> None:
        super().__init__(groups, **options)
        self.gains = gains

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p, gain in self.gains.items():
            if p.grad is not None:
                p.grad.mul_(gain)
        super().step(closure)


def folded_gains(job: Job) -> dict[nn.Parameter, Tensor]:
    """The student's weights that a batch norm was folded into, and g^2 in a shape that broadcasts to them."""
    gains = {}
    for node in job.teacher.graph.nodes:
        if "bn" in node.meta:
            stats: BatchNormStats = node.meta["bn"]
            weight = cast(nn.Parameter, attribute(job.student, str(node.args[1].target)))
            gain = (stats.std / stats.running_std) ** 2
            if node.target in TRANSPOSED:  # (C_in, C_out / groups, ...), C_in by groups
                rows = gain.view(-1, 1, weight.shape[1])
                gain = rows.expand(-1, weight.shape[0] // len(rows), -1).reshape(weight.shape[:2])
            gains[weight] = gain.view(*gain.shape, *[1] * (weight.dim() - gain.dim()))
    return gains


def statistics_loss(features: list[Tensor], stats: list[BatchNormStats]) -> Tensor:
    """L_BNS: how far the inputs of the batch norms are from the statistics they hold (GDFQ, eq. 4, as the code has it):

        mean over layers of   mean_c (mu_c - mean_c)^2 + mean_c (sigma_c^2 - var_c)^2

    mu and sigma^2 (biased) over batch and space. features: the folded outputs y = gamma (x - mean) / s + beta, (N, C,
    ...), s = sqrt(var + eps); so x - mean = (y - beta) s / gamma. In a dead channel, with next to no gamma, y knows
    nothing of x.
    """
    losses = []
    for feature, stat in zip(features, stats, strict=True):
        unfold = stat.running_std / stat.std.clamp(min=DEAD * float(stat.std.max()) + 1e-12)  # s / |gamma|
        mean, var = channel_moments(feature)
        losses.append((((mean - stat.mean) * unfold) ** 2).mean() + (((var - stat.std**2) * unfold**2) ** 2).mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def _watch(job: Job, images: Tensor) -> None:
    job.student(images)


def _set_grids(job: Job) -> None:
    """The weights' grids as they are now, with room for the biases."""
    job.fit_weights(search=False)
    make_room(job.student)
