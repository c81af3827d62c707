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

from zaq.config.constants import Amount, Count, OneOrMore, Positive, Share, named
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage, numbers
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.engine.work import Network
from zaq.errors import BitsError
from zaq.ir.move import onto
from zaq.ir.taps import with_taps
from zaq.methods.base import Method
from zaq.quant.student import Snapshot
from zaq.stages.balance import Equilibrium
from zaq.stages.calibrate import Calibrate, HoldOut
from zaq.stages.singular import Watch
from zaq.stages.synthesis import Draw
from zaq.stages.training import frozen, rate, student_optimizer, varied
from zaq.stages.unroll import answered
from zaq.synth.losses import (
    RELATIONS,
    activation_loss,
    batch_norm_loss,
    channel_moments,
    output_discrepancy,
    relation_gaps,
)
from zaq.synth.registry import GeneratorName, made, require

__all__ = ["ZAQ", "Game"]

Relation = Annotated[str, named("relation", RELATIONS)]
Balance = Annotated[str, named("balance", ("began", "none"))]
Keep = Annotated[str, named("state to keep", ("held-out", "m_global"))]

STEPS = {"fast": (16, 3), "default": (150, 85), "best": (600, 1200)}  # effort: warm-up steps of G, rounds of the game
Outputs = tuple[list[Tensor], list[Tensor]]  # of a network, and its features at the taps
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
    balance: Balance = "none"  # began: k_t sets how much the generator looks for discrepancy, how much for likeness
    gamma: Positive = 1.5  # began: times as much as easy images that hard ones are to differ
    lambda_k: Positive = 0.05  # began: how fast k_t follows (paper: 1e-3, over some 100,000 steps)
    patience: Count = 20  # began: rounds in which M_global does not fall, and the game is over; 0: it goes on
    keep: Keep = "held-out"  # which of the game's states stays: of the least held-out loss, or m_global
    unroll: Count = 0  # steps of the student's answer that the generator's gradient runs through
    unroll_weights: bool = False  # whether it answers with its weights, too, or by ranges, gains and biases alone
    watch: Amount | None = None  # times its usual size a singular value may jump to; 0: no watch; None: 2 of a biggan

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the method or the stage that has these rules
        if self.keep == "m_global" and self.balance == "none":
            raise BitsError("-s keep=m_global: there is an M_global only with -s balance=began.")
        if self.balance == "began" and not (self.q_steps and self.g_steps):
            raise BitsError("-s balance=began: holds two who play; q_steps and g_steps are to be 1 or more.")

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
        parts = (state.student.module, state.generator, play.optimizer_q, play.optimizer_g, play, play.watch)
        return Loop(
            play.round,
            *parts,
            schedule=self.schedule,
            finish=play.choose,
            over=play.balance.over,
            chooses=self.keep == "m_global",
            resumable=True,
        )


class _Play:
    """What a game holds beside the two networks: optimizers, the memory of the layers' gaps, balance and watch."""

    def __init__(self, rules: Game, state: State) -> None:
        self.rules, self.state, self.batch = rules, state, state.task.batch
        self.task = state.task
        self.teacher, self.student = self.task.teacher_at(self.task.taps), state.student_at(self.task.taps)
        self.began = rules.balance == "began"
        self.balance = Equilibrium(rules.gamma, rules.lambda_k, rules.patience if self.began else 0)
        self.best: Snapshot | None = None  # the student at the least M_global
        self.stats = state.task.batch_norms() if rules.bns or self.began else {}
        self.watched = self.task.teacher_at(list(self.stats), of=channel_moments) if self.stats else None
        student, scales = state.student, rules.learn_scales
        self.optimizer_q = student_optimizer(student, rules.rate(rules.steps), rules.lr_bias, scales)
        self.optimizer_g = torch.optim.Adam(state.generator.parameters(), rules.lr_generator)
        networks = {"generator": state.generator, "student": student.module}
        self.watch = Watch(networks, state.generator.jump if rules.watch is None else rules.watch, rules.steps)
        self.layer_gaps: Tensor | None = None  # EMA of each layer's relation gap, (layers,)

    def state_dict(self) -> dict[str, Any]:
        """What changes from round to round and is no network."""
        return {"layer_gaps": self.layer_gaps, "balance": self.balance.state_dict(), "best": self.best}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Put that back."""
        self.layer_gaps, self.best = saved["layer_gaps"], saved["best"]
        self.balance.load_state_dict(saved["balance"])

    def choose(self) -> None:
        """Put back the student that there was at the least M_global, if it is to be kept."""
        if self.best is not None:
            self.state.student.restore(self.best)

    def round(self, i: int) -> dict[str, float]:
        """`q_steps` steps of the student, `g_steps` of the generator; the last losses of each."""
        rules, generator, card, losses = self.rules, self.state.generator, self.state.task.card, dict[str, float]()
        for _ in range(rules.q_steps):
            d_o, d_f, _features = self._discrepancy(varied(generator.draw(self.batch), card))
            loss = d_o + rules.alpha * d_f
            found = {"d_o": d_o, "d_f": d_f, "loss_q": loss}
            if self.began:
                found["d_easy"], easy_f, _features = self._discrepancy(self._easy())
                loss = found["loss_q"] = loss + found["d_easy"] + rules.alpha * easy_f
            self.task.work.step(self.optimizer_q, loss)
            losses = numbers(found)
        with frozen(self.state.student.module):
            for _ in range(rules.g_steps):
                images, labels = generator.sample(self.batch)
                loss = self._generator_loss(varied(images, card), labels)
                self.task.work.step(self.optimizer_g, loss)
                losses["loss_g"] = float(loss.detach())
        if self.began:
            losses |= self.balance.step(losses["d_easy"], losses["d_o"])
            if rules.keep == "m_global" and self.balance.best:
                self.best = self.state.student.snapshot()
        return losses | self.watch.step(i)

    def _easy(self) -> Tensor:
        """A batch of the images that learning began with."""
        images = self.state.images
        assert images is not None
        return images[torch.randint(len(images), (self.batch,))].to(self.task.device)

    def _generator_loss(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """L_DE = -D_o - alpha D_f + beta L_a (ZAQ, eq. 9), and batch norm's statistics if they are asked for.

        Or BEGAN's balance of the first two and what makes images likely: statistics, or L_a without any, and classes.
        """
        rules, k = self.rules, self.balance.k if self.began else 1.0
        taught = self.teacher(images)
        answer = self._answer(images, taught) if rules.unroll else None
        d_o, d_f, last = self._discrepancy(images, taught, answer)
        loss = -k * (d_o + rules.alpha * d_f)
        if self.began:
            loss = loss + (1 - k) * self._unlikely(images, labels, taught[0], last)
        else:
            loss = loss + rules.beta * activation_loss(last) if rules.beta else loss
            loss = loss + rules.bns * self._statistics(images) if self.watched is not None else loss
        costs: dict[str, Tensor] = self.state.generator.costs()
        return loss + sum(costs.values())

    def _unlikely(self, images: Tensor, labels: Tensor | None, p: list[Tensor], last: Tensor) -> Tensor:
        unlike = activation_loss(last) if self.watched is None else self._statistics(images)
        return unlike if labels is None else unlike + F.cross_entropy(p[0], labels)

    def _statistics(self, images: Tensor) -> Tensor:
        assert self.watched is not None
        return batch_norm_loss(self.watched(images)[1], list(self.stats.values()))

    def _answer(self, images: Tensor, taught: Outputs) -> Network:
        """The student after `unroll` steps on these images."""

        def loss(student: Network) -> Tensor:
            d_o, d_f, _ = self._discrepancy(images, taught, student)
            return d_o + self.rules.alpha * d_f

        graph = with_taps(self.state.student.module, self.task.taps)
        rules = self.rules
        return answered(graph, self.optimizer_q, loss, rules.unroll, rules.unroll_weights, self.task.work)

    def _discrepancy(
        self, images: Tensor, taught: Outputs | None = None, student: Network | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D_o, D_f and the teacher's last feature map."""
        if taught is None:
            with torch.set_grad_enabled(images.requires_grad):
                taught = self.teacher(images)
        (p, p_features), (q, q_features) = taught, (student or self.student)(images)
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
        generator = onto(made(self.generator, task.card, self.latent, self.width, task.classes), task.device)
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
            found |= generator.costs()
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
    truncation: Positive | None = None  # where normal numbers end in images that ranges are read from
    warm_up: Count | None = None
    lr_warm_up: Amount = 1e-3

    name: ClassVar[str] = "zaq"
    parts: ClassVar[tuple[type[Stage], ...]] = (WarmUp, Calibrate, HoldOut, Game)

    def stages(self, task: Task) -> list[Stage]:
        """Warm up, calibrate, play. Raises BitsError for a truncation that the generator does not know."""
        if self.truncation is not None:
            require(self.generator, f"truncation={self.truncation:g}", "truncates")
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
            Draw(count=CALIBRATION_BATCHES * task.batch, truncation=self.truncation),
            Calibrate(),
            HoldOut(attack=0.0, relative=False),
            Game(steps=rounds if self.rounds is None else self.rounds, **rules),
        ]
