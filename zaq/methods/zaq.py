"""Zero-shot Adversarial Quantization (Liu, Zhang, Wang; CVPR 2021).

A generator G looks for images on which the quantized student Q differs from the float teacher P; Q learns to agree
with P on them:

    Q: min L_KT = D_o + alpha D_f                    (knowledge transfer)
    G: min L_DE = -D_o - alpha D_f + beta L_a        (discrepancy estimation)

D_o is the L1 of the outputs, D_f the L1 of the channel relation maps, layer by layer, weighted by the softmax of each
layer's discrepancy. Before the game, G is warmed up to draw images that ranges can be read from: on batch-norm
statistics where the teacher has them, and on its classes where it is a classifier. `warm_up=0` leaves that out.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.config.constants import Amount, Count, OneOrMore, Share, named
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage, numbers
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.ir.move import onto
from zaq.methods.base import Method
from zaq.stages.calibrate import Calibrate, HoldOut
from zaq.stages.synthesis import Draw
from zaq.stages.training import frozen, rate, student_optimizer, varied
from zaq.synth.generators import generator_of
from zaq.synth.losses import (
    RELATIONS,
    activation_loss,
    batch_norm_loss,
    channel_moments,
    output_discrepancy,
    relation_gaps,
)

__all__ = ["ZAQ", "Game"]

Relation = Annotated[str, named("relation", RELATIONS)]
GeneratorName = Annotated[str, named("generator", generator_of)]

STEPS = {"fast": (16, 3), "default": (150, 85), "best": (600, 1200)}  # effort: warm-up steps of G, rounds of the game
HELD_OUT_BATCHES = 4
CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Rules:
    """Constants of the game."""

    alpha: Amount = 0.1  # weight of D_f (code: 1.0); 0 leaves the relation maps out
    beta: Amount = 0.05  # weight of L_a (code: 0.1); 0 leaves it out
    relation: Relation = "crm"  # crm, gram, or the code's scrm
    layer_weights: bool = True  # softmax of each layer's relation gap; False: a plain mean (code)
    ema: Share = 0.9  # memory of those gaps
    q_steps: Count = 5  # student steps a round ...
    g_steps: Count = 1  # ... and generator steps
    milestones: tuple[Share, ...] = (1 / 3, 2 / 3)  # parts of the game after which every step is ten times smaller
    lr_student: Amount | None = None  # Adam, in steps of each channel's grid (code: SGD at 0.1); None: from `travel`
    travel: Amount = 0.2  # steps of its grid that a weight may travel over the game; sets lr_student, up to 2e-3
    learn_scales: bool = True  # scales move with the weights, counted at the grid's end; False keeps ranges frozen
    lr_bias: Amount = 5e-5
    lr_generator: Amount = 1e-4  # Adam, in the game (code: 1e-3, over 18,000 steps and without a warm-up)
    bns: Amount = 0.0  # weight of batch-norm statistics in L_DE as well (not in the paper)

    def schedule(self, progress: float) -> float:
        """The factor on every rate, over progress in [0, 1)."""
        return float(0.1 ** sum(progress >= m for m in self.milestones))

    def rate(self, rounds: int) -> float:
        """The student's learning rate, in steps of each grid."""
        if self.lr_student is not None:
            return self.lr_student
        return rate(self.travel, self.q_steps * sum(self.schedule(i / rounds) for i in range(rounds)))


@dataclass(frozen=True, kw_only=True)
class Game(Rules, Stage):
    """Student and generator play, a round a step; the state with the least held-out loss stays."""

    name: str = "zaq"

    cost: ClassVar[float] = 28.0
    checks: ClassVar[int] = 8

    def judge(self, state: State) -> Callable[[], float] | None:
        return state.judge

    def start(self, state: State, journal: Journal) -> Loop:
        play = _Play(self, state)
        optimizers = (play.optimizer_q, play.optimizer_g)
        parts = (state.student.module, state.generator, *optimizers, play)
        return Loop(play.round, *parts, schedule=self.schedule, resumable=True)


class _Play:
    """What a game holds beside the two networks and their optimizers: the memory of the layers' gaps."""

    def __init__(self, rules: Game, state: State) -> None:
        self.rules, self.state, self.batch = rules, state, state.task.batch
        self.task = state.task
        self.teacher, self.student = self.task.teacher_at(self.task.taps), state.student_at(self.task.taps)
        self.stats = state.task.batch_norms() if rules.bns else {}
        self.watched = self.task.teacher_at(list(self.stats), of=channel_moments) if self.stats else None
        student, scales = state.student, rules.learn_scales
        self.optimizer_q = student_optimizer(student, rules.rate(rules.steps), rules.lr_bias, scales)
        self.optimizer_g = torch.optim.Adam(state.generator.parameters(), rules.lr_generator)
        self.layer_gaps: Tensor | None = None  # EMA of each layer's relation gap, (layers,)

    def state_dict(self) -> dict[str, Any]:
        """What changes from round to round and is no network."""
        return {"layer_gaps": self.layer_gaps}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Put that back."""
        self.layer_gaps = saved["layer_gaps"]

    def round(self, _: int) -> dict[str, float]:
        """`q_steps` steps of the student, `g_steps` of the generator; the last losses of each."""
        rules, generator, card, losses = self.rules, self.state.generator, self.state.task.card, dict[str, float]()
        for _ in range(rules.q_steps):
            d_o, d_f, _features = self._discrepancy(varied(generator.draw(self.batch), card))
            loss = d_o + rules.alpha * d_f
            self.task.work.step(self.optimizer_q, loss)
            losses = numbers({"d_o": d_o, "d_f": d_f, "loss_q": loss})
        with frozen(self.state.student.module):
            for _ in range(rules.g_steps):
                loss = self._generator_loss(varied(generator.sample(self.batch)[0], card))
                self.task.work.step(self.optimizer_g, loss)
                losses["loss_g"] = float(loss.detach())
        return losses

    def _generator_loss(self, images: Tensor) -> Tensor:
        """L_DE = -D_o - alpha D_f + beta L_a (ZAQ, eq. 9), and batch norm's statistics if they are asked for."""
        rules = self.rules
        d_o, d_f, last = self._discrepancy(images)
        loss = -d_o - rules.alpha * d_f
        if rules.beta:
            loss = loss + rules.beta * activation_loss(last)
        if self.watched is not None:
            loss = loss + rules.bns * batch_norm_loss(self.watched(images)[1], list(self.stats.values()))
        return loss

    def _discrepancy(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D_o, D_f and the teacher's last feature map."""
        with torch.set_grad_enabled(images.requires_grad):
            p, p_features = self.teacher(images)
        q, q_features = self.student(images)
        gaps = q[0].new_zeros(1)
        if p_features and self.rules.alpha:
            gaps = relation_gaps(p_features, q_features, self.rules.relation)
        d_f = (self._weights(gaps) * gaps).sum()
        return output_discrepancy(p, q), d_f, p_features[-1] if p_features else p[0]

    def _weights(self, gaps: Tensor) -> Tensor:
        """w_l = softmax over layers of the relation gap, accumulated by an EMA (ZAQ, eq. 6)."""
        if not self.rules.layer_weights:
            return torch.full_like(gaps, 1 / len(gaps))
        now, ema = gaps.detach(), self.rules.ema
        self.layer_gaps = now if self.layer_gaps is None else ema * self.layer_gaps + (1 - ema) * now
        return torch.softmax(self.layer_gaps, 0)


@dataclass(frozen=True, kw_only=True)
class WarmUp(Stage):
    """Teach the generator alone to draw images that ranges can be read from."""

    name: str = "warm-up"
    beta: Amount = 0.05  # weight of L_a, where there is no batch norm
    lr: Amount = 1e-3
    generator: GeneratorName = "dcgan"
    latent: OneOrMore = 256
    width: OneOrMore = 32

    after_ctrl_c: ClassVar[str] = "start"

    def makes(self) -> tuple[str, ...]:
        return ("generator",)

    def applies(self, state: State) -> bool:
        return True

    def length(self, state: State) -> int:
        return self.steps if state.task.batch_norms() or state.generator.classes is not None else 0

    def start(self, state: State, journal: Journal) -> Loop:
        task = state.task
        generator = onto(generator_of(self.generator)(task.card, self.latent, self.width, task.classes), task.device)
        state.generator, stats = generator, task.batch_norms()
        if not stats and generator.classes is None:
            journal.notes.append("the teacher has neither batch norm nor classes: the generator starts from noise")
            return Loop(lambda _: None)
        teacher = task.teacher_at([*stats] or task.taps[-1:], of=channel_moments if stats else None)
        optimizer = torch.optim.Adam(generator.parameters(), self.lr)

        def one(_: int) -> dict[str, float]:
            images, labels = generator.sample(task.batch)
            outputs, features = teacher(varied(images, task.card))
            found = {}
            if stats:
                found["batch_norm"] = batch_norm_loss(features, list(stats.values()))
            elif self.beta and features:
                found["activation"] = self.beta * activation_loss(features[-1])
            if labels is not None:
                found["cross_entropy"] = F.cross_entropy(outputs[0], labels)
            task.work.step(optimizer, torch.stack(list(found.values())).sum())
            return numbers(found)

        return Loop(one, generator, optimizer, resumable=True)


@dataclass(frozen=True)
class ZAQ(Rules, Method):
    """The paper's constants; where its released code has others they are named. `None`: set by the effort."""

    rounds: Count | None = None
    generator: GeneratorName = "dcgan"
    latent: OneOrMore = 256
    width: OneOrMore = 32  # of the generator (paper: 128, a quarter of it on CIFAR)
    warm_up: Count | None = None
    lr_warm_up: Amount = 1e-3

    name: ClassVar[str] = "zaq"
    parts: ClassVar[tuple[type[Stage], ...]] = (WarmUp, Calibrate, HoldOut, Game)

    def stages(self, task: Task) -> list[Stage]:
        """Warm up, calibrate, play."""
        warm_up, rounds = STEPS[task.effort]
        rules = {f.name: getattr(self, f.name) for f in fields(Rules)}
        return [
            WarmUp(
                steps=warm_up if self.warm_up is None else self.warm_up,
                beta=self.beta,
                lr=self.lr_warm_up,
                generator=self.generator,
                latent=self.latent,
                width=self.width,
            ),
            Draw(name="held-out draw", count=HELD_OUT_BATCHES * task.batch, held_out=True),
            Draw(count=CALIBRATION_BATCHES * task.batch),
            Calibrate(),
            HoldOut(attack=0.0, relative=False),
            Game(steps=rounds if self.rounds is None else self.rounds, **rules),
        ]
