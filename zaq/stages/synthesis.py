"""A generator worth training on: the teacher's batch-norm statistics, classes, hard ones first, swinging convolutions.

    L_G = sum_l [mean and deviation of layer l against its batch norm] + beta mean (1 - p_y)^gamma CE(P(G(x, y)), y)

Batch-norm matching as ZeroQ's, (1 - p_y)^gamma as HAST's (Li et al. 2023, eq. 5): what is sure already is left alone,
so that images stay near the borders between classes. A teacher without batch norm excites its last feature map instead
(ZAQ's L_a); one without classes either leaves the generator as it is, and the adversarial stage to make what it can.

Images start from dead leaves, not from noise: those of a generator that starts from noise are too much alike, and what
a student learns on them it does not keep on others, however small the loss becomes. What the generator draws is then
refined: its pixels go down the same loss (ZeroQ, eq. 3; DeepInversion, eq. 2), from where they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.compute.random import drawing
from zaq.config.constants import Amount, Count, OneOrMore, Positive
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage, numbers
from zaq.engine.state import State
from zaq.engine.store import in_parts, rest
from zaq.engine.task import Task
from zaq.errors import BitsError, TrainingError
from zaq.ir.move import onto
from zaq.stages.pixels import Pixels
from zaq.stages.training import cosine, varied
from zaq.synth.drawings import drawings, reads_drawings
from zaq.synth.generators import Generator, alike
from zaq.synth.leaves import Painter
from zaq.synth.losses import activation_loss, batch_norm_loss, channel_moments
from zaq.synth.merge import Cocktail, begun
from zaq.synth.registry import GeneratorName, made, require
from zaq.synth.swing import shifted, with_swing

__all__ = ["Draw", "FromNoise", "Mingle", "Refine", "Synthesize", "refines", "shift"]

SHIFTED = 16  # see `shift`
DRAWS_A_CLASS = 100  # that it takes to learn one; a short training draws from fewer classes, at random
LARGEST = 64  # pixels a side that are refined: larger images fit the statistics with patterns, and teach a student less
NOTHING_KNOWN = "the teacher has neither batch norm nor classes: images are dead leaves, painted at random"


def moves(task: Task) -> bool:
    """Whether the teacher has statistics that pixels can be moved to."""
    return bool(task.batch_norms())


def refines(task: Task) -> bool:
    """Whether what a generator draws is refined."""
    return moves(task) and max(task.card.input[1:]) <= LARGEST


def shift(task: Task) -> int:
    """Pixels that images are shifted by, at most, wherever refined ones are looked at: a sixteenth of a side."""
    return min(task.card.input[1:]) // SHIFTED


@dataclass(frozen=True, kw_only=True)
class Likeness(Stage):
    """What images should be: the loss L_G, which a generator's weights or the images' pixels go down."""

    held_out: bool = False  # of the images that are judged by, not those that are learned on
    beta: Amount = 1.0  # weight of the classes
    gamma: Amount = 2.0  # how much less a sure sample counts (HAST: 2 on CIFAR)
    swing: bool = True

    def losses_of(self, task: Task) -> Callable[[Tensor, Tensor | None], dict[str, Tensor]]:
        """The parts of L_G by name, as a function of images (N, C, H, W) and labels (N,)."""
        stats = task.batch_norms()
        network = with_swing(task.teacher) if self.swing else None
        of = channel_moments if stats else None
        teacher = task.teacher_at([*stats] or task.taps[-1:], network, of)

        def losses(images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
            outputs, features = teacher(images)
            found = {}
            if stats:
                found["batch_norm"] = batch_norm_loss(features, list(stats.values()))
            elif features:
                found["activation"] = activation_loss(features[-1])
            if (classes := self.wanted(outputs, labels)) is not None and self.beta:
                found["classes"] = self.beta * self._hard(outputs[0], classes)
            return found

        return losses

    def wanted(self, outputs: list[Tensor], labels: Tensor | None) -> Tensor | None:
        """The classes (N,) that images are to be of, of which the teacher says this; None where there are none."""
        return labels

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = -F.cross_entropy(logits, labels, reduction="none")
        weight = (1 - log_p.detach().exp()) ** self.gamma
        return -(weight * log_p).mean()


@dataclass(frozen=True, kw_only=True)
class Synthesize(Likeness):
    """Train a generator for the teacher, for `steps` batches."""

    name: str = "synthesis"
    lr: Amount = 1e-2  # Adam, falling as a cosine (Genie: 1e-2). At 3e-3 short trainings end nearer, and teach less
    generator: GeneratorName = "painter"
    latent: OneOrMore = 128  # of a generator that starts from noise
    width: OneOrMore = 32
    cycle: Amount | None = None  # weight of the way back from images to their canvas (CycleGAN: 10); None, 0: no way
    begin: Cocktail | None = None  # generators whose weights it begins with (`stages.warm`)

    cost: ClassVar[float] = 3.6
    after_ctrl_c: ClassVar[str] = "start"

    def makes(self) -> tuple[str, ...]:
        return ("samples" if self.held_out else "generator",)

    def applies(self, state: State) -> bool:
        return True

    def length(self, state: State) -> int:
        return self.steps if moves(state.task) or state.task.classes is not None else 0

    def start(self, state: State, journal: Journal) -> Loop:
        task = state.task
        if self.cycle:
            require(self.generator, f"cycle={self.cycle:g}", "paints")
            if not moves(task) and task.classes is None:
                raise BitsError(
                    f"-s cycle={self.cycle:g}: {NOTHING_KNOWN}, and there is no painting to come back from."
                )
        generator = onto(made(self.generator, task.card, self.latent, self.width, task.classes), task.device)
        known = generator.drawn[:0]  # classes that it begins with
        if self.begin is not None:
            generator, known, said = self._warm(self.begin, generator, task)
            journal.records[-1].say(said)
        if self.held_out:
            state.other = generator
        else:
            state.generator = generator
        if task.classes is not None:
            learned = max(min(task.classes, self.steps * task.batch // DRAWS_A_CLASS), 0 if len(known) else 2)
            new = torch.randperm(task.classes)[:learned].to(task.device)
            generator.drawn = torch.cat([known, new]).unique()
            if len(generator.drawn) < task.classes:
                journal.records[-1].say(f"it learns {len(generator.drawn)} of {task.classes} classes, drawn at random")
        elif not moves(task):
            journal.records[-1].say(NOTHING_KNOWN)
            return Loop(lambda _: None)
        return self.learning(generator, task)

    def learning(self, generator: Generator, task: Task) -> Loop:
        """The training of a generator that is on the task's device, with a way back if there is to be one."""
        back = [onto(Painter(task.card, self.width), task.device)] if self.cycle else []
        learned_by = [p for network in (generator, *back) for p in network.parameters()]
        losses, optimizer = self.losses_of(task), torch.optim.Adam(learned_by, self.lr)

        def one(_: int) -> dict[str, float]:
            images, labels, cycle = self._drawn(generator, *back, task=task)
            found = losses(varied(images, task.card), labels) | generator.costs() | cycle
            task.work.step(optimizer, torch.stack(list(found.values())).sum())
            return numbers(found)

        return Loop(one, generator, *back, optimizer, schedule=cosine, resumable=True)

    def _warm(self, cocktail: Cocktail, generator: Generator, task: Task) -> tuple[Generator, Tensor, str]:
        """A generator that begins as one of a cocktail's, the classes that it knows then, and what is to be said.

        Of networks with as many classes as the teacher it is the one whose images come nearest by L_G. Where none has,
        the shared weights are taken, and classes begin anew.
        """
        rivals = [i for i, g in enumerate(cocktail.generators) if g.classes == task.classes]
        if not rivals:
            said = f"it begins with given weights, its classes anew: no network there has {task.classes}"
            return begun(generator, cocktail.generators[0]), generator.drawn[:0], said
        losses, begins, far = self.losses_of(task), list[Generator](), list[float]()
        for i in rivals:
            one = begun(generator, cocktail.generators[i])
            one.drawn = cocktail.generators[i].drawn.to(task.device)
            with torch.no_grad(), drawing(task.seed, task.device):
                far.append(float(torch.stack(list(losses(*one.sample(task.batch)).values())).sum()))
            begins.append(one)
        nearest = far.index(min(far))
        said = f"it begins as the generator of {cocktail.of[rivals[nearest]].name}"
        return begins[nearest], begins[nearest].drawn, said

    def _drawn(
        self, generator: Generator, back: Generator | None = None, *, task: Task
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """A batch of images, their labels, and, with a way back F, lambda ||F(G(canvas)) - canvas||_1 of pixels from -1
        to 1 (Zhu et al. 2017, eq. 2): canvases that were painted alike have none.
        """
        if back is None:
            return *generator.sample(task.batch), {}
        canvas, labels = generator.starts(task.batch)
        images = generator(canvas, labels)
        low, high = task.card.bounds(task.device)
        missed = (2 * (back(images) - canvas) / (high - low)).abs().mean()
        return images, labels, {"cycle": (self.cycle or 0.0) * missed}


@dataclass(frozen=True, kw_only=True)
class Draw(Stage):
    """Draw images from a generator, a batch at a time: to learn on, or to be held out."""

    name: str = "draw"
    count: OneOrMore = 256
    held_out: bool = False
    truncation: Positive | None = None  # where the normal numbers end that they start from; small: surer, more alike

    recorded: ClassVar[bool] = False
    after_ctrl_c: ClassVar[str] = "run"

    def makes(self) -> tuple[str, ...]:
        return ("samples" if self.held_out else "images",)

    def once(self, state: State, journal: Journal) -> None:
        batch, images = state.task.batch, state.store.gather(self.drawn(state), self.count)
        if broken := sum(int((~x.isfinite()).flatten(1).any(1).sum()) for x in in_parts(images, batch)):
            raise TrainingError(
                f"{self.name}: {broken} of the {self.count} images that the generator draws are NaN or infinite; there "
                "is nothing to learn from. A smaller learning rate of the generator may help, or another generator."
            )
        if alike(images[: state.task.few], state.task.card):
            what = "held out" if self.held_out else "that are learned from"
            journal.notes.append(
                f"the {len(images)} images {what} are all alike: the generator draws one image, whatever it starts "
                "from, and what is learned or measured on it says little"
            )
        if self.held_out:
            state.samples, state.held_out = images.to(state.task.device), True
        else:
            state.images = images

    def drawn(self, state: State) -> Iterator[Tensor]:
        """The images, in batches."""
        generator = state.other if self.held_out and state.other is not None else state.generator
        with generator.truncated(self.truncation):
            for _ in range(-(-self.count // state.task.batch)):
                yield generator.draw(state.task.batch)


@dataclass(frozen=True, kw_only=True)
class Refine(Likeness):
    """Move the images' own pixels down L_G, `together` at a time, each such part with random classes.

    One generator cannot give every image what the teacher's batch norms remember; their pixels can take it.
    """

    name: str = "refine"
    steps: Count = 40  # for each part
    lr: Amount = 0.03  # Adam, of pixels
    together: OneOrMore = 128  # images that are refined at once, to the statistics of all of them

    cost: ClassVar[float] = 3.5
    look: ClassVar[int] = 5

    def makes(self) -> tuple[str, ...]:
        return ("samples" if self.held_out else "images",)

    def applies(self, state: State) -> bool:
        return self.steps > 0 and refines(state.task)

    def length(self, state: State) -> int:
        images = state.samples if self.held_out else state.images
        assert images is not None
        return self.steps * -(-len(images) // self.together)

    def start(self, state: State, journal: Journal) -> Loop:
        images = state.samples if self.held_out else state.images
        assert images is not None

        def keep(found: Iterator[Tensor], finished: int) -> None:
            refined = state.store.gather(found, len(images))
            if self.held_out:
                state.samples = refined.to(state.task.device)
            else:
                state.images = refined

        start = state.store.gather(map(state.task.card.standard, in_parts(images, self.together)), len(images))
        return self.pixels(state, start, self.steps, self.together, keep)

    def pixels(
        self, state: State, start: Tensor, steps: int, together: int, keep: Callable[[Iterator[Tensor], int], None]
    ) -> Pixels:
        """The descent of pixels, of mean 0 and deviation 1 at the start; `keep` is handed what it comes to, in parts,
        and how many of these have gone all their steps."""
        task = state.task
        losses_of, reach, card = self.losses_of(task), shift(task), task.card

        def part(count: int) -> Callable[[Tensor], dict[str, Tensor]]:
            labels = torch.randint(task.classes, (count,)).to(task.device) if task.classes else None
            return lambda z: losses_of(shifted(card.images(z), reach), labels)

        def finish() -> None:
            keep((card.in_bounds(card.images(z)) for z in loop.images), loop.finished)

        low, high = (card.standard(end) for end in card.bounds(task.device))
        loop = Pixels(
            start,
            part,
            steps,
            self.lr,
            task.work,
            together=together,
            bounds=(low, high),
            finish=finish,
            store=state.store,
        )
        return loop


@dataclass(frozen=True, kw_only=True)
class FromNoise(Refine):
    """Of images too large to be refined, put what noise becomes on the same way (ZeroQ) in the place of every
    `every`-th: another kind, as one kind alone can be fitted at the cost of all else without that being seen.
    """

    every: OneOrMore = 4
    lr: Amount = 0.1

    def applies(self, state: State) -> bool:
        return self.steps > 0 and moves(state.task) and not refines(state.task)

    def length(self, state: State) -> int:
        return self._half * -(-self._count(state) // state.task.batch)

    @property
    def _half(self) -> int:
        return max(self.steps // 2, 1)  # all of them teach no more

    def _count(self, state: State) -> int:
        images = state.samples if self.held_out else state.images
        assert images is not None
        return len(images[:: self.every])

    def start(self, state: State, journal: Journal) -> Loop:
        task, images = state.task, state.samples if self.held_out else state.images
        assert images is not None

        def keep(found: Iterator[Tensor], finished: int) -> None:
            """Those that have gone all their steps; where Ctrl-C came before, painted ones stay, and no noise."""
            mixed = state.store.gather(images.split(task.batch), len(images))
            for place, part in zip(mixed[:: self.every].split(task.batch), islice(found, finished), strict=False):
                place.copy_(part)
                rest()
            if self.held_out:
                state.samples = mixed.to(state.task.device)
            else:
                state.images = mixed

        count = self._count(state)
        noise = (task.card.standard(task.noise()) for _ in range(-(-count // task.batch)))
        return self.pixels(state, state.store.gather(noise, count), self._half, task.batch, keep)


@dataclass(frozen=True, kw_only=True)
class Mingle(Stage):
    """Of a teacher with neither classes nor batch norm that remembers its images, put noise in the place of every
    second image that is judged by; of one that may be for drawings, noise and drawings in that of two of three.

    Nothing tells what its own images were like. What serves the painted ones alone is not to be kept: at 8 bits, biases
    corrected on them brought a detector's held-out loss down by a sixth, and took half of its scores.
    """

    name: str = "held-out mixture"

    recorded: ClassVar[bool] = False
    after_ctrl_c: ClassVar[str] = "run"

    def makes(self) -> tuple[str, ...]:
        return ("samples",)

    def applies(self, state: State) -> bool:
        return self.steps > 0 and not state.task.remembers and state.task.classes is None

    def once(self, state: State, journal: Journal) -> None:
        assert state.samples is not None
        mixed = state.samples.clone()
        kinds = 3 if reads_drawings(state.task) else 2
        mixed[::kinds] = state.task.noise(len(mixed[::kinds]))
        if kinds == 3:
            mixed[1::3] = drawings(len(mixed[1::3]), state.task.card).to(mixed)
        state.samples = mixed
