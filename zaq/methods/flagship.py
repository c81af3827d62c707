"""The recipe `zaq quantize` follows unless told otherwise: the best known parts, each kept only if it serves.

    synthesis -> ranges -> SQuant -> block reconstruction -> distillation -> the adversarial game -> bias correction

Images come from a generator and are refined (`synthesis`); of those too large for that a part starts from noise. A
second generator, of another seed, draws those that every stage is judged on, half of them moved to where student and
teacher differ. A stage after which the outputs differ more on them is taken back.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from zaq.ir.nodes import attribute
from zaq.ir.taps import with_taps
from zaq.methods.job import Job, Stage
from zaq.methods.loop import Game, HeldOut, play
from zaq.methods.mix import choose_bits
from zaq.methods.reconstruction import Reconstruction
from zaq.methods.synthesis import Synthesis, shift
from zaq.methods.training import cosine, frozen, rate, step, student_optimizer
from zaq.methods.zaq import ZAQ
from zaq.quant.edges import HIGH
from zaq.quant.placement import make_room
from zaq.quant.rounding import into_cells, squant
from zaq.stats.bias import correct_empirically
from zaq.synth.distil import shifted
from zaq.synth.generators import Generator
from zaq.synth.leaves import Painter
from zaq.synth.losses import output_discrepancy, relative_discrepancy

__all__ = ["Flagship"]


@dataclass(frozen=True)
class Plan:
    """How long each stage takes: steps, images, rounds. 0 leaves it out."""

    synthesis: int
    refine: int
    images: int
    reconstruct: int
    polish: int
    game: int


PLANS = {
    "fast": Plan(24, 0, 256, 15, 0, 0),
    "default": Plan(120, 40, 512, 100, 200, 3),
    "best": Plan(240, 80, 1024, 300, 1500, 5),
}
A_CLASS = 20  # refined images, or twice as many are drawn: the distillation sees no others
ENOUGH = 16  # images a step of the distillation that may move weights: at eight it forgets what rounding has learned
A_NOISE = 4  # of the images learned on that are too large to be refined every fourth starts from noise
STEPS_A_ROUND = 5  # of the distillation, between two looks at whether the loss is still a number


@dataclass(frozen=True)
class Flagship:
    """The stages' lengths (`None`: set by the effort; 0 leaves one out) and what the recipe adds to their own
    constants.
    """

    synthesis: int | None = None  # steps of the generator; the second one takes half
    refine: int | None = None  # steps of the images' own pixels
    images: int | None = (
        None  # that ranges and blocks, and the distillation where they were refined, are learned on; see `A_CLASS`
    )
    squant: bool = True
    reconstruct: int | None = None  # steps a block
    polish: int | None = None  # steps of the distillation
    game: int | None = None  # rounds of ZAQ's
    correct: bool = True  # biases, behind every block that was learned and at the end
    unpainted: float = (
        0.5  # part of the distillation's images that are dead leaves as they are, where none were refined
    )
    feature: float = 1.0  # weight of the feature maps in the distillation
    travel: float = 6.0  # steps of its grid that a weight may travel in the distillation ...
    fastest: float = 6e-3  # ... at no more than this a step: at 2e-2 four bits gain more, and a student of two is lost
    lr_bias: float = 1e-4
    attack: float = 0.02  # how far held-out samples are moved to where the student differs, in parts of a pixel's range
    attack_steps: int = 3
    drop: float = 0.5  # of the reconstruction

    mixes = True  # finds bits for `--bits mixed` and `w4.0a4`

    def __call__(self, job: Job) -> None:
        """Quantize `job.student` in place."""
        given = {f.name: getattr(self, f.name) for f in fields(Plan) if getattr(self, f.name) is not None}
        plan = replace(PLANS[job.effort], **given)
        synthesis = Synthesis()
        generator, other = synthesis(job, plan.synthesis), synthesis(job, plan.synthesis // 2, "held-out synthesis")
        sparse = (
            self.images is None and synthesis.refines(job, plan.refine) and plan.images < A_CLASS * (job.classes or 0)
        )
        images = prepare(job, synthesis, generator, plan.images * (2 if sparse else 1), plan.refine, A_NOISE)
        others = prepare(job, synthesis, other, job.few, plan.refine, 2, "held-out refine")
        if job.qconfig.mixed:
            choose_bits(job, images[: job.batch])
        parts = images.split(job.batch)
        job.calibrate(parts, len(parts))
        samples = self._attacked(job, others)
        job.samples, held_out = samples, HeldOut(job, samples, relative_discrepancy)
        weights, activations = (
            any(q.bits < HIGH for q in some.values()) for some in (job.placement.weights, job.placement.activations)
        )
        if self.squant and weights:
            attempt(job, "squant", held_out, lambda stage: round_weights(job))
        if plan.reconstruct and (weights or activations):  # at 8 bits there is nothing in a block to learn
            learn = Reconstruction(drop=self.drop, correct=self.correct)
            attempt(job, "reconstruct", held_out, lambda stage: learn(job, images, plan.reconstruct, stage))
        if plan.polish and not job.interrupted:
            self._polish(job, generator, images if synthesis.moves(job, plan.refine) else None, plan.polish, held_out)
        if plan.game and not job.interrupted:
            ZAQ().game(job, generator, plan.game, held_out)
        if self.correct:
            attempt(job, "bias correction", held_out, lambda stage: correct(job, images))

    def _attacked(self, job: Job, images: Tensor) -> Tensor:
        """Half of the images as they are, half moved up the gradient of what teacher and student differ by."""
        low, high = job.card.bounds()
        teacher, student = with_taps(job.teacher, []), with_taps(job.student, [])
        moved = []
        with frozen(job.student):
            for part in images[len(images) // 2 :].split(job.batch):
                for _ in range(self.attack_steps if self.attack else 0):
                    x = part.clone().requires_grad_(True)
                    (gradient,) = torch.autograd.grad(output_discrepancy(teacher(x)[0], student(x)[0]), x)
                    part = job.in_bounds(part + self.attack / self.attack_steps * (high - low) * gradient.sign())
                moved.append(part)
        return torch.cat([images[: len(images) // 2], *moved])

    def _polish(self, job: Job, generator: Painter, given: Tensor | None, steps: int, held_out: HeldOut) -> None:
        """Distil outputs and feature maps end to end, on the images given or, without, on new ones every step (PLF; Li
        et al. 2024).

        Weights stay as they were rounded where a step sees too few images to choose better; ranges and biases do not.
        """
        rounds = -(-steps // STEPS_A_ROUND)
        lr = rate(self.travel, STEPS_A_ROUND * sum(cosine(i / rounds) for i in range(rounds)), self.fastest)
        optimizer = student_optimizer(job, lr, self.lr_bias, weights=job.batch >= ENOUGH)
        teacher, student = job.tapped(student=False), job.tapped(student=True)
        reach = shift(job)

        def one_round(game: Game) -> dict[str, float]:
            total = 0.0
            for _ in range(STEPS_A_ROUND):
                if given is None:
                    images = generator.draw(job.batch, self.unpainted)
                else:
                    images = shifted(given[torch.randint(len(given), (job.batch,))], reach)
                with torch.no_grad():
                    p, wanted = teacher(images)
                q, found = student(images)
                loss = relative_discrepancy(p, q)
                if self.feature and wanted:
                    gaps = [
                        (b - a).pow(2).mean() / a.var().clamp(min=1e-12) for a, b in zip(wanted, found, strict=True)
                    ]
                    loss = loss + self.feature * torch.stack(gaps).sum()
                step(optimizer, loss)
                total += float(loss.detach())
            return {"loss_q": total / STEPS_A_ROUND}

        stage = play(
            job, Game(job.student, None, optimizer, None), rounds, one_round, cosine, held_out, "polish", checks=1
        )
        stage.steps *= STEPS_A_ROUND


def attempt(job: Job, name: str, held_out: HeldOut, action: Callable[[Stage], None]) -> None:
    """Do something to the student; take it back unless the held-out loss is smaller after it."""
    if job.interrupted:
        return
    stage = Stage(name, 0, loss_before=held_out())
    job.stages.append(stage)
    saved = copy.deepcopy(job.student.state_dict())
    try:
        action(stage)
    except KeyboardInterrupt:
        job.interrupted = True
        stage.note = f"interrupted after {stage.steps} steps"
    stage.loss_after = held_out()
    stage.kept = stage.loss_after < (stage.loss_before or 0.0)  # never where it is NaN
    if not stage.kept:
        job.student.load_state_dict(saved)
        stage.note = "; ".join(
            filter(None, [stage.note, f"not kept: the held-out loss was {stage.loss_after:.4g} after it"])
        )
        stage.loss_after = stage.loss_before


def prepare(
    job: Job, synthesis: Synthesis, generator: Generator, count: int, steps: int, noise: int, name: str = "refine"
) -> Tensor:
    """Images (count, C, H, W), refined for `steps` steps; of those too large for that every `noise`-th starts from
    noise.

    One kind alone can be fitted at the cost of all else, and would not tell.
    """
    images = draw(generator, count, job.batch)
    if synthesis.refines(job, steps):
        return synthesis.refine(job, images, steps, name)
    if synthesis.moves(job, steps):
        images[::noise] = synthesis.from_noise(
            job, len(images[::noise]), max(steps // 2, 1), name
        )  # all of them teach no more
    return images


def draw(generator: Generator, count: int, batch: int) -> Tensor:
    """Images (count, C, H, W), a batch at a time."""
    return torch.cat([generator.draw(batch) for _ in range(-(-count // batch))])[:count]


def round_weights(job: Job) -> None:
    """SQuant for every weight of fewer than 8 bits."""
    for name, quantizer in job.placement.weights.items():
        if quantizer.bits < HIGH:
            weight = attribute(job.student, name)
            into_cells(quantizer, weight.data, squant(quantizer, weight))
    make_room(job.student)


def correct(job: Job, images: Tensor) -> None:
    correct_empirically(job.teacher, job.student, images[: job.few])
    make_room(job.student)
