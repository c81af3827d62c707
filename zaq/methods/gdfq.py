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

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.config.constants import Amount, Count, Factor, OneOrMore, Positive, Share, named
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage, numbers
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import BitsError
from zaq.ir.move import onto
from zaq.ir.nodes import attribute
from zaq.ir.ops import TRANSPOSED
from zaq.methods.base import Method
from zaq.passes.fold import BatchNormStats
from zaq.stages.singular import Watch
from zaq.stages.synthesis import Draw
from zaq.stages.training import distillation, varied
from zaq.synth.generators import DCGAN, Generator
from zaq.synth.losses import Moments, channel_moments
from zaq.synth.registry import GeneratorName, made

__all__ = ["GDFQ", "FoldedSGD", "folded_gains", "statistics_loss"]

WARM_UP = 100  # steps that G learns alone, at least: ranges are read from what it draws by then
LARGE, MANY = 64, 1000  # pixels a side or classes from which the paper's choices for ImageNet hold
HELD_OUT_BATCHES = 4
Reduction = Annotated[str, named("reduction", ("batchmean", "mean"))]
DEAD = 0.01  # of a layer's largest gamma: a channel below has no scale of its own


@dataclass(frozen=True)
class Lengths:
    """What depends on effort and size."""

    epochs: int
    iterations: int  # of an epoch
    batch: int  # 0: the task's
    warm_up: float
    lr_student: float
    lr_generator: float
    width: int


# effort: for small images, for ImageNet's. `best` is the paper's. What is hundreds of times shorter takes longer steps.
# They were chosen on the shipped ResNet-20 at w4a4 by synthetic losses: in 60 steps of 1e-4, 3e-4, 1e-3 and 3e-3 a
# student's held-out KL went from 3.41 to 1.12, 1.10, 4.09 and 4.31, and a generator of width 32 came to a cross-entropy
# of 2.6, 1.9 and 2.5 in 120 steps of 1e-3, 3e-3 and 1e-2. Those for ImageNet's follow from them; nothing was measured
# there.
LENGTHS = {
    "fast": (Lengths(32, 5, 0, 0.01, 3e-4, 3e-3, 32), Lengths(32, 5, 0, 0.125, 3e-6, 3e-3, 32)),
    "default": (Lengths(110, 5, 0, 0.01, 3e-4, 3e-3, 32), Lengths(110, 5, 0, 0.125, 3e-6, 3e-3, 32)),
    "best": (Lengths(400, 200, 200, 0.01, 1e-4, 1e-3, 128), Lengths(400, 200, 16, 0.125, 1e-6, 1e-3, 128)),
}


@dataclass(frozen=True, kw_only=True)
class WarmUp(Stage):
    """G alone; the student watches what it draws in the first `watched` steps, and its ranges are frozen there."""

    name: str = "warm-up"
    of: "GDFQ"
    plan: Lengths
    watched: Count

    look: ClassVar[int] = 5

    def start(self, state: State, journal: Journal) -> Loop:
        task, student, plan = state.task, state.student, self.plan
        generator: Generator
        if self.of.generator == "dcgan":  # with the paper's own constants
            generator = DCGAN(task.card, self.of.latent, plan.width, task.classes, doublings=2, eps=0.8, tanh=True)
        else:
            generator = made(self.of.generator, task.card, self.of.latent, plan.width, task.classes)
        onto(generator, task.device)
        state.generator = generator
        state.optimizer = torch.optim.Adam(generator.parameters(), plan.lr_generator, (0.5, 0.999))
        draw = drawing(self.of, state, plan.batch)
        student.watch("ema")
        frozen: list[bool] = []

        def freeze() -> None:
            if not frozen:
                student.freeze()
                frozen.append(True)

        def one(i: int) -> dict[str, float]:
            if i == self.watched:
                freeze()
            images, _, _, losses = draw()
            if i < self.watched:
                with torch.no_grad():
                    student(images)
            return losses

        def finish() -> None:
            freeze()
            student.fit_weights(search=False)

        return Loop(one, generator, state.optimizer, finish=finish)


@dataclass(frozen=True, kw_only=True)
class Play(Stage):
    """Both learn: G goes on, and the student learns from what it draws; the state with the least held-out KL stays."""

    name: str = "gdfq"
    of: "GDFQ"
    plan: Lengths

    checks: ClassVar[int] = 8
    look: ClassVar[int] = 5

    def judge(self, state: State) -> Callable[[], float] | None:
        assert state.samples is not None
        parts, student, teacher = state.samples.split(state.task.batch), state.student_at(), state.task.teacher_at()

        @torch.no_grad()
        def held_out_loss() -> float:
            temperature = self.of.temperature
            pairs = ((student(x)[0][0], teacher(x)[0][0]) for x in parts)
            return float(torch.stack([distillation(q, p, temperature) for q, p in pairs]).mean())

        return held_out_loss

    def start(self, state: State, journal: Journal) -> Loop:
        of, student, draw = self.of, state.student, drawing(self.of, state, self.plan.batch)
        optimizer, network = self._optimizer(state), state.student_at()
        networks = {"generator": state.generator, "student": student.module}
        watch = Watch(networks, state.generator.jump if of.watch is None else of.watch, self.steps)

        def one(i: int) -> dict[str, float]:
            images, labels, p, losses = draw()
            (q,), _ = network(images)
            cross_entropy, kl = F.cross_entropy(q, labels), distillation(q, p, of.temperature, of.reduction)
            state.task.work.step(optimizer, cross_entropy + of.alpha * kl)
            student.fit_weights(search=False)
            return losses | numbers({"cross_entropy_q": cross_entropy, "kl_q": kl}) | watch.step(i)

        parts = (student.module, state.generator, optimizer, state.optimizer, watch)
        return Loop(one, *parts, schedule=self.schedule, resumable=True)

    def schedule(self, progress: float) -> float:
        """The factor on every rate: milestones are counted over the warm-up, too."""
        done = self.plan.warm_up + (1 - self.plan.warm_up) * progress
        return float(0.1 ** sum(done >= m for m in self.of.milestones))

    def _optimizer(self, state: State) -> torch.optim.Optimizer:
        """Weights and biases by SGD, scales not at all. What batch norm's mean put into a bias does not decay."""
        student, teacher = state.student, state.task.teacher
        for quantizer in (*student.placement.weights.values(), *student.placement.activations.values()):
            quantizer.scale.requires_grad_(False)
        names = [str(n.args[2].target) for n in teacher.graph.nodes if "bn" in n.meta]
        bare = {id(attribute(student.module, name)) for name in names}
        learned = [p for p in student.module.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learned if id(p) not in bare]},
            {"params": [p for p in learned if id(p) in bare], "weight_decay": 0.0},
        ]
        of, lr = self.of, self.plan.lr_student
        gains = folded_gains(state)
        return FoldedSGD(groups, gains, lr=lr, momentum=of.momentum, nesterov=True, weight_decay=of.weight_decay)


Drawn = tuple[Tensor, Tensor, Tensor, dict[str, float]]


def drawing(of: "GDFQ", state: State, batch: int) -> Callable[[], Drawn]:
    """A step of G as a function: draws, learns from it, and returns images, labels, the teacher's logits,
    and losses."""
    stats, generator, optimizer = state.task.batch_norms(), state.generator, state.optimizer
    teacher = state.task.teacher_at(list(stats), of=channel_moments)

    def draw() -> Drawn:
        images, labels = generator.sample(batch)
        (p,), moments = teacher(varied(images, state.task.card))
        cross_entropy, bns = F.cross_entropy(p, labels), statistics_loss(moments, list(stats.values()))
        loss = cross_entropy + of.beta * bns + sum(generator.costs().values())
        state.task.work.step(optimizer, loss)
        found = numbers({"loss_g": loss, "cross_entropy": cross_entropy, "statistics": bns})
        return images.detach(), labels, p.detach(), found

    return draw


@dataclass(frozen=True)
class GDFQ(Method):
    """The paper's constants; where its released code has others they are named. `None`: see LENGTHS."""

    alpha: Amount = 1.0  # weight of the distillation ...
    temperature: Positive = 20.0
    reduction: Reduction = (
        "batchmean"  # ... a mean over samples (code: "mean", over classes too: its weight is T^2 / K = 40, 4, 0.4)
    )
    beta: Amount = 0.1  # weight of the batch norms' statistics
    epochs: OneOrMore | None = None  # 400 at `best`
    iterations: OneOrMore | None = None  # of an epoch; 200 at `best`
    batch: OneOrMore | None = None  # 200 (ImageNet: 16) at `best`
    warm_up: Share | None = None  # part of the epochs before the student starts: 4 (ImageNet: 50) of 400
    calibration: Share = 0.01  # part of the epochs in which ranges are read: 4 of 400
    milestones: tuple[Share, ...] = (
        1 / 4,
        1 / 2,
        3 / 4,
    )  # parts of the epochs after which every step is ten times smaller
    lr_student: Amount | None = None  # 1e-4 (ImageNet: 1e-6) at `best`
    momentum: Factor = 0.9  # Nesterov's
    weight_decay: Amount = 1e-4
    lr_generator: Amount | None = None  # 1e-3 at `best`; Adam with betas (0.5, 0.999)
    generator: GeneratorName = "dcgan"
    latent: OneOrMore = 100
    width: OneOrMore | None = None  # of the generator, 128 at `best`
    watch: Amount | None = None  # see `methods.zaq.Rules`

    name: ClassVar[str] = "gdfq"

    def stages(self, task: Task) -> list[Stage]:
        """G learns alone while ranges are read, then both learn. Raises BitsError for what has no classes or
        statistics.
        """
        lacks = {
            "is no classifier": task.classes is None,
            "has no batch norm that could be folded": not task.batch_norms(),
        }
        if any(lacks.values()):
            missing = " and ".join(what for what, lacking in lacks.items() if lacking)
            raise BitsError(
                f"gdfq draws images from classes and batch-norm statistics; the model {missing}. --method zaq needs "
                "neither."
            )
        plan = self.lengths(task)
        steps = plan.epochs * plan.iterations
        alone = max(round(plan.warm_up * steps), WARM_UP if self.warm_up is None else 1)
        watched = max(round(self.calibration * steps), WARM_UP)
        return [
            WarmUp(of=self, plan=plan, steps=alone, watched=watched),
            Draw(name="held-out draw", count=HELD_OUT_BATCHES * task.batch, held_out=True),
            Play(of=self, plan=plan, steps=max(steps - alone, 0)),
        ]

    def lengths(self, task: Task) -> Lengths:
        """What holds for this effort and size, with the fields that were set in place of its own."""
        large = max(task.card.input[1:]) > LARGE or (task.classes or 0) >= MANY
        plan = LENGTHS[task.effort][large]
        chosen = {f.name: getattr(self, f.name) for f in fields(plan) if getattr(self, f.name) is not None}
        return replace(plan, **({"batch": plan.batch or task.batch} | chosen))


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


def folded_gains(state: State) -> dict[nn.Parameter, Tensor]:
    """The student's weights that a batch norm was folded into, and g^2 in a shape that broadcasts to them."""
    gains = {}
    for node in state.task.teacher.graph.nodes:
        if "bn" in node.meta:
            stats: BatchNormStats = node.meta["bn"]
            weight = cast(nn.Parameter, state.student.weight(str(node.args[1].target)))
            gain = (stats.std / stats.running_std) ** 2
            if node.target in TRANSPOSED:  # (C_in, C_out / groups, ...), C_in by groups
                rows = gain.view(-1, 1, weight.shape[1])
                gain = rows.expand(-1, weight.shape[0] // len(rows), -1).reshape(weight.shape[:2])
            gains[weight] = gain.view(*gain.shape, *[1] * (weight.dim() - gain.dim()))
    return gains


def statistics_loss(moments: list[Moments], stats: list[BatchNormStats]) -> Tensor:
    """L_BNS: how far the inputs of the batch norms are from the statistics they hold (GDFQ, eq. 4, as the code has it):

        mean over layers of   mean_c (mu_c - mean_c)^2 + mean_c (sigma_c^2 - var_c)^2

    mu and sigma^2 (biased) over batch and space. moments: of the folded outputs y = gamma (x - mean) / s + beta, s =
    sqrt(var + eps); so x - mean = (y - beta) s / gamma. In a dead channel, with next to no gamma, y knows
    nothing of x.
    """
    losses = []
    for (mean, var), stat in zip(moments, stats, strict=True):
        unfold = stat.running_std / stat.std.clamp(min=DEAD * float(stat.std.max()) + 1e-12)  # s / |gamma|
        losses.append((((mean - stat.mean) * unfold) ** 2).mean() + (((var - stat.std**2) * unfold**2) ** 2).mean())
    return torch.stack(losses).mean()
