"""GAN Cocktail (Avrahami et al. 2021): generators of several runs become one, told what to draw by network and class.

    root:     G_i' begins as G_0 and learns to draw what G_i draws, for every network but the first
    average:  the shared weights are the mean of all G_i'; a class's own tables stay
    tune:     all of them learn to draw what the originals draw, with one set of shared weights

No image is read in any of these: the data is what the original generators draw.

The paper trains a GAN on what G_i draws, as StyleGAN's images are all that is known of its training. Here there is
more: a teacher beside each generator, and what every image was made from. So a generator goes down

    L = L_G(its images; teacher i) + 10 |its images - those of G_i from the same canvas and class|     (pixels -1 to 1)

with the loss L_G that G_i itself was trained by (`stages.synthesis`), and no discriminator is needed. What differs from
the paper: that loss; the class beside the domain; and that each network keeps its own tables of classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zaq import __version__
from zaq.api import teacher_of
from zaq.compute.devices import CPU
from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.engine.progress import Planned, Progress
from zaq.engine.runner import seed_of
from zaq.engine.stage import Diverged
from zaq.engine.task import Task
from zaq.engine.work import Work
from zaq.errors import SourceError, TrainingError
from zaq.ir.move import onto
from zaq.run import TEACHER, Run
from zaq.stages.synthesis import Synthesize
from zaq.stages.training import cosine, varied
from zaq.synth.generator_file import opened
from zaq.synth.generators import Generator
from zaq.synth.losses import batch_norm_loss, channel_moments
from zaq.synth.merge import Cocktail, Of, averaged, begun, described

__all__ = ["STEPS", "Judged", "Original", "cocktail", "judged", "originals", "root", "tune"]

STEPS = 60  # of each network's rooting, and of the tuning
LR = 3e-3  # Adam, falling as a cosine: a third of what generators are trained at, so that they stay near the root
LIKE = 10.0  # weight of the images of the original, as CycleGAN's of a cycle
LOOKED_AT = 4  # batches that a generator is judged by

Losses = Callable[[Tensor, Tensor | None], dict[str, Tensor]]


@dataclass(frozen=True)
class Original:
    """What a run holds: the network, its generator, and the loss that this was trained by."""

    of: Of
    task: Task
    generator: Generator
    losses: Losses


@dataclass(frozen=True)
class Judged:
    """How a network finds the images of a generator: how far they are from its batch norms (`batch_norm_loss`), and
    the part, 0 to 1, that it puts into the class they were drawn for.
    """

    batch_norm: float
    agreement: float


def cocktail(
    runs: Sequence[Path], steps: int = STEPS, seed: int = 0, progress: Progress | None = None, device: Any = CPU
) -> tuple[Cocktail, list[dict[str, Judged]]]:
    """The generators of these runs as one, the first being the root; and how each network finds the images of its own
    one (`original`), of the average (`average`) and of what came out (`cocktail`).

    Raises SourceError for runs that cannot be mixed (see `originals`), TrainingError for losses that are no numbers.
    """
    given, progress = originals(runs, device), progress or Progress()
    names = [f"root {o.of.name}" for o in given[1:]]
    plan = [*(Planned(name, steps) for name in names), Planned("tune", steps * len(given))]
    with progress.over(lambda: plan):
        rooted = [given[0].generator]
        rooted += [root(o, given[0], steps, seed, progress, name) for o, name in zip(given[1:], names, strict=True)]
        average = averaged(rooted)
        tuned = averaged(rooted)
        tune(given, tuned, steps, seed, progress)
        progress.finished()
    made = {"root": given[0].of.name, "steps": steps, "seed": seed, "zaq": __version__, "torch": torch.__version__}
    kinds = {"original": [o.generator for o in given], "average": average, "cocktail": tuned}
    found = [{kind: judged(o, of[i]) for kind, of in kinds.items()} for i, o in enumerate(given)]
    return Cocktail([o.of for o in given], tuned, made), found


def originals(runs: Sequence[Path], device: Any = CPU) -> list[Original]:
    """The networks and generators of these runs.

    Raises SourceError for fewer than two runs; for a folder that is none, or that kept no generator; for generators of
    other kinds, sizes or images than the first; for a network without batch norm.
    """
    if len({path.resolve() for path in runs}) < max(len(runs), 2):
        raise SourceError(
            "a cocktail is of two runs or more, each named once; one alone is taken as it is: zaq quantize "
            "MODEL --generator RUN."
        )
    found = [_original(path, device) for path in runs]
    first = described(found[0].generator)
    for path, original in zip(runs, found, strict=True):
        if (other := described(original.generator)) != first:
            raise SourceError(f"{path}: its generator is {other}, that of {runs[0]} {first}; all have to be alike.")
    return found


def _original(path: Path, device: torch.device) -> Original:
    if not path.is_dir():
        raise SourceError(f"{path}: is no folder; a run of zaq quantize is one.")
    graph, kept = Run.open(path, (TEACHER,)).teacher(), opened(path)
    assert graph is not None
    (of,), (generator,) = kept.of, kept.generators
    teacher, card, _ = teacher_of(graph, generator.card)
    task = Task(onto(teacher, device), QConfig.parse("w8a8"), card, work=Work(device))
    if task.classes != generator.classes or card.input != generator.card.input:
        raise SourceError(f"{path}: its {TEACHER} is not the network that its generator is of; the folder was changed.")
    if not task.batch_norms():
        raise SourceError(
            f"{path}: its network has no batch norm, and nothing else says what images are to be like: such generators "
            "are not mixed."
        )
    return Original(of, task, onto(generator, device), Synthesize().losses_of(task))


def root(
    original: Original, first: Original, steps: int, seed: int = 0, progress: Progress | None = None, name: str = "root"
) -> Generator:
    """A generator that begins as the first one's and learns to draw what the original draws."""
    generator = begun(original.generator, first.generator)
    _learn(name, [(original, generator)], steps, seed, progress or Progress())
    return generator


def tune(
    given: Sequence[Original],
    generators: Sequence[Generator],
    steps: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Have generators that share their weights draw what the originals draw, a batch of each network at every step."""
    _learn("tune", list(zip(given, generators, strict=True)), steps, seed, progress or Progress())


def _learn(name: str, pairs: Sequence[tuple[Original, Generator]], steps: int, seed: int, progress: Progress) -> None:
    """Steps of generators, each towards the images of an original; at each step the mean of what they all miss."""
    weights = list({id(p): p for _, generator in pairs for p in generator.parameters()}.values())
    optimizer, work = torch.optim.Adam(weights, LR), pairs[0][0].task.work
    with drawing(seed_of(seed, name), work.device):
        for i in progress.track(name, steps):
            for group in optimizer.param_groups:
                group["lr"] = LR * cosine(i / steps)
            try:
                loss = torch.stack([_missed(*pair) for pair in pairs]).mean()
            except Diverged as error:
                raise TrainingError(f"{name}: {error} in step {i + 1} of {steps}; fewer --steps may help.") from error
            work.step(optimizer, loss)


def _missed(original: Original, generator: Generator) -> Tensor:
    """L of a batch; () of float32."""
    start, labels = original.generator.starts(original.task.batch)
    with torch.no_grad():
        wanted = original.generator(start, labels)
    images = varied(generator(start, labels), original.task.card)
    apart = (2 * (images - wanted) / (generator.high - generator.low)).abs().mean()
    return torch.stack([*original.losses(images, labels).values(), LIKE * apart]).sum()


@torch.no_grad()
def judged(original: Original, generator: Generator) -> Judged:
    """How the network of an original finds what a generator draws, always from the same canvases and classes."""
    task, stats = original.task, original.task.batch_norms()
    network, far, right = task.teacher_at([*stats], of=channel_moments), 0.0, 0.0
    with drawing(0, task.device):
        for _ in range(LOOKED_AT):
            start, labels = original.generator.starts(task.batch)
            outputs, moments = network(generator(start, labels))
            far += float(batch_norm_loss(moments, list(stats.values()))) / LOOKED_AT
            right += float((outputs[0].argmax(1) == labels).float().mean()) / LOOKED_AT
    return Judged(far, right)
