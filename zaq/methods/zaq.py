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
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.errors import BitsError, unknown
from zaq.ir.taps import with_taps
from zaq.methods.job import Job
from zaq.methods.loop import Game, HeldOut, play
from zaq.methods.training import descend, frozen, rate, step, student_optimizer
from zaq.synth.generators import GENERATORS, Generator
from zaq.synth.losses import RELATIONS, activation_loss, batch_norm_loss, output_discrepancy, relation_gaps

__all__ = ["ZAQ"]

STEPS = {"fast": (16, 3), "default": (150, 85), "best": (600, 1200)}  # effort: warm-up steps of G, rounds of the game
HELD_OUT_BATCHES = 4
CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class ZAQ:
    """The paper's constants; where its released code has others they are named. `None`: set by the effort."""

    alpha: float = 0.1  # weight of D_f (code: 1.0); 0 leaves the relation maps out
    beta: float = 0.05  # weight of L_a (code: 0.1); 0 leaves it out
    relation: str = "crm"  # crm, gram, or the code's scrm
    layer_weights: bool = True  # softmax of each layer's relation gap; False: a plain mean (code)
    ema: float = 0.9  # memory of those gaps
    q_steps: int = 5  # student steps a round ...
    g_steps: int = 1  # ... and generator steps
    rounds: int | None = None
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)  # parts of the game after which every step is ten times smaller
    lr_student: float | None = None  # Adam, in steps of each channel's grid (code: SGD at 0.1); None: from `travel`
    travel: float = 0.2  # steps of its grid that a weight may travel over the game; sets lr_student, up to 2e-3
    learn_scales: bool = True  # scales move with the weights, counted at the grid's end; False keeps ranges frozen
    lr_bias: float = 5e-5
    lr_generator: float = 1e-4  # Adam, in the game (code: 1e-3, over 18,000 steps and without a warm-up)
    lr_warm_up: float = 1e-3
    generator: str = "dcgan"
    latent: int = 256
    width: int = 32  # of the generator (paper: 128, a quarter of it on CIFAR)
    warm_up: int | None = None
    bns: float = 0.0  # weight of batch-norm statistics in L_DE as well (not in the paper)

    def __post_init__(self) -> None:
        for what, name, known in (("relation", self.relation, RELATIONS), ("generator", self.generator, GENERATORS)):
            if name not in known:
                raise BitsError(f"{what}: " + unknown(what, name, known))

    def __call__(self, job: Job) -> None:
        """Quantize `job.student` in place: warm up, calibrate, play."""
        warm_up, rounds = STEPS[job.effort]
        generator = GENERATORS[self.generator](job.card, self.latent, self.width, job.classes)
        self._warm_up(job, generator, warm_up if self.warm_up is None else self.warm_up)
        job.samples = torch.cat([generator.draw(job.batch) for _ in range(HELD_OUT_BATCHES)])
        job.calibrate((generator.draw(job.batch) for _ in range(CALIBRATION_BATCHES)), CALIBRATION_BATCHES)
        if not job.interrupted:
            held_out_loss = HeldOut(job, job.samples, output_discrepancy)
            self.game(job, generator, rounds if self.rounds is None else self.rounds, held_out_loss)

    def _warm_up(self, job: Job, generator: Generator, steps: int) -> None:
        stats = job.batch_norms()
        if not stats and generator.classes is None:
            job.notes.append("the teacher has neither batch norm nor classes: the generator starts from noise")
            return
        teacher = with_taps(job.teacher, [*stats, *job.taps[-1:]])
        optimizer = _adam(generator, self.lr_warm_up)

        def losses(_: int) -> dict[str, Tensor]:
            images, labels = generator.sample(job.batch)
            outputs, features = teacher(images)
            found = {}
            if stats:
                found["batch_norm"] = batch_norm_loss(features[: len(stats)], list(stats.values()))
            elif self.beta and features:
                found["activation"] = self.beta * activation_loss(features[-1])
            if labels is not None:
                found["cross_entropy"] = F.cross_entropy(outputs[0], labels)
            return found

        descend(job, "warm-up", steps, optimizer, losses)

    def game(self, job: Job, generator: Generator, rounds: int, held_out: Callable[[], float]) -> None:
        """Play, and keep the state of `job.student` for which `held_out` is least."""
        teacher, student = job.tapped(student=False), job.tapped(student=True)
        stats = job.batch_norms() if self.bns else {}
        watched = with_taps(job.teacher, list(stats)) if stats else None
        optimizer_q = student_optimizer(job, self._rate(rounds), self.lr_bias, self.learn_scales)
        optimizer_g = _adam(generator, self.lr_generator)
        game = Game(job.student, generator, optimizer_q, optimizer_g)

        def discrepancy(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """D_o, D_f and the teacher's last feature map."""
            with torch.set_grad_enabled(images.requires_grad):
                p, features_p = teacher(images)
            q, features_q = student(images)
            gaps = relation_gaps(features_p, features_q, self.relation) if features_p and self.alpha else torch.zeros(1)
            return (
                output_discrepancy(p, q),
                (self._weights(game, gaps) * gaps).sum(),
                features_p[-1] if features_p else p[0],
            )

        def one_round(game: Game) -> dict[str, float]:
            losses = {}
            for _ in range(self.q_steps):
                images = generator.draw(job.batch)
                d_o, d_f, _ = discrepancy(images)
                loss = d_o + self.alpha * d_f
                step(optimizer_q, loss)
                losses = {"d_o": float(d_o.detach()), "d_f": float(d_f.detach()), "loss_q": float(loss.detach())}
            with frozen(job.student):
                for _ in range(self.g_steps):
                    images, _ = generator.sample(job.batch)
                    d_o, d_f, last = discrepancy(images)
                    loss = -d_o - self.alpha * d_f
                    if self.beta:
                        loss = loss + self.beta * activation_loss(last)
                    if watched is not None:
                        loss = loss + self.bns * batch_norm_loss(watched(images)[1], list(stats.values()))
                    step(optimizer_g, loss)
                    losses["loss_g"] = float(loss.detach())
            return losses

        play(job, game, rounds, one_round, self._schedule, held_out, "zaq")

    def _schedule(self, progress: float) -> float:
        return float(0.1 ** sum(progress >= m for m in self.milestones))

    def _rate(self, rounds: int) -> float:
        if self.lr_student is not None:
            return self.lr_student
        return rate(self.travel, self.q_steps * sum(self._schedule(i / rounds) for i in range(rounds)))

    def _weights(self, game: Game, gaps: Tensor) -> Tensor:
        """w_l = softmax over layers of the relation gap, accumulated by an EMA (ZAQ, eq. 6)."""
        if not self.layer_weights:
            return torch.full_like(gaps, 1 / len(gaps))
        now = gaps.detach()
        game.layer_gaps = now if game.layer_gaps is None else self.ema * game.layer_gaps + (1 - self.ema) * now
        return torch.softmax(game.layer_gaps, 0)


def _adam(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr)
