"""GAN Cocktail's central figure, and what a new network has of it.

    python benchmarks/cocktail.py SOURCE SOURCE ... --new SOURCE -o benchmarks/results/cocktail

For each SOURCE a generator is trained, from a seed of its own. A table says how each network finds the images of its
original, of the plain average of the originals' weights, of the average after rooting, and of that after tuning; a
sheet of pictures shows them, drawn from the same canvases and classes. Then students of a network that none of them has
seen learn from images of generators that were trained for some steps, from random weights and from the cocktail's;
all are judged by the same held-out synthetic images, drawn by a generator that began at random. No real image is read.

Seconds are those of the processor: the machine may be shared.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor

from zaq.api import teacher_of
from zaq.cocktail import Judged, Original, judged, root, tune
from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.config.bounds import json_text
from zaq.engine.journal import Journal
from zaq.engine.progress import LineProgress
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.sources import load
from zaq.stages.bias import CorrectBiases
from zaq.stages.calibrate import Calibrate, HoldOut
from zaq.stages.reconstruct import Reconstruct
from zaq.stages.rounding import SQuant
from zaq.stages.synthesis import Draw, Synthesize
from zaq.synth.generators import Generator
from zaq.synth.merge import Cocktail, Of, averaged

COLUMNS = 10  # images of a kind in the sheet
IMAGES = 256  # that a student learns from
HELD = 24  # steps of the generator that draws what students are judged by

Found = dict[str, Any]


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--new", required=True, help="A network that none of the generators has seen.")
@click.option("--steps", type=click.IntRange(1), default=60, show_default=True, help="Of each original generator.")
@click.option("--mix", type=click.IntRange(1), default=60, show_default=True, help="Of a rooting, and of the tuning.")
@click.option("--cold", type=int, multiple=True, default=(8, 24, 72), show_default=True)
@click.option("--warm", type=int, multiple=True, default=(0, 8, 24), show_default=True)
@click.option("--blocks", type=click.IntRange(0), default=15, show_default=True, help="Steps a block of a student.")
@click.option("--bits", default="w4a4", show_default=True, help="Of the new network's students.")
@click.option("--batch", type=click.IntRange(2), default=64, show_default=True, help="Images a step sees.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first; others count on.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def cocktail(
    sources: Sequence[str], new: str, steps: int, mix: int, cold: Sequence[int], warm: Sequence[int], blocks: int,
    bits: str, batch: int, seed: int, output: Path,
) -> None:  # fmt: skip
    """A folder with results.json, results.md and images.jpg."""
    started, progress = time.process_time(), LineProgress()
    given = [trained(source, steps, batch, seed + i, progress) for i, source in enumerate(sources)]
    first = [o.generator for o in given]
    names = [f"root {o.of.name}" for o in given[1:]]
    rooted = [first[0], *(root(o, given[0], mix, seed, progress, n) for o, n in zip(given[1:], names, strict=True))]
    tuned = averaged(rooted)
    tune(given, tuned, mix, seed, progress)
    kinds = {"original": first, "plain average": averaged(first), "rooted average": averaged(rooted), "tuned": tuned}
    found: Found = {
        "networks": [o.of.name for o in given],
        "judged": {kind: [judged(o, of[i]) for i, o in enumerate(given)] for kind, of in kinds.items()},
        "distance": {kind: [distance(o, of[i]) for i, o in enumerate(given)] for kind, of in kinds.items()},
        "seconds": time.process_time() - started,
    }
    output.mkdir(parents=True, exist_ok=True)
    sheet(given, kinds, output / "images.jpg")
    write(found, output)
    model, rows = load(new), list[Found]()
    found |= {"new": model.name, "bits": bits, "rows": rows}
    held = held_out(model, bits, batch, seed, progress)
    for begin, of in ((None, cold), (Cocktail([o.of for o in given], tuned), warm)):
        for count in of:
            rows.append(learned(model.name, held, Synthesize(steps=count, begin=begin), blocks, progress))
            write(found, output)


def trained(source: str, steps: int, batch: int, seed: int, progress: LineProgress) -> Original:
    """A network, and a generator that the recipe's synthesis has trained for it."""
    model = load(source)
    teacher, card, _ = teacher_of(model.graph, model.card)
    state, stage = State(Task(teacher, QConfig.parse("w8a8"), card, seed=seed, batch=batch)), Synthesize(steps=steps)
    run_stages([stage], state, Journal(progress))
    return Original(Of(model.name, model.sha256), state.task, state.generator, stage.losses_of(state.task))


def held_out(model: Any, bits: str, batch: int, seed: int, progress: LineProgress) -> State:
    """A network to be quantized, and images that its students are judged by."""
    teacher, card, _ = teacher_of(model.graph, model.card)
    state = State(Task(teacher, QConfig.parse(bits), card, "fast", seed, batch=batch))
    drawn = Draw(name="held-out draw", count=state.task.few, held_out=True)
    run_stages([Synthesize(name="held-out synthesis", steps=HELD, held_out=True), drawn], state, Journal(progress))
    return state


def learned(name: str, held: State, stage: Synthesize, blocks: int, progress: LineProgress) -> Found:
    """How good the images of a synthesis are, the held-out loss of a student of them, and the synthesis's seconds."""
    state, journal = State(held.task, samples=held.samples, held_out=True), Journal(progress)
    started = time.process_time()
    run_stages([stage], state, journal)
    seconds = time.process_time() - started
    behind = [Draw(count=IMAGES), Calibrate(drawn=True), HoldOut(attack=0.0), SQuant(), Reconstruct(steps=blocks)]
    run_stages([*behind, CorrectBiases()], state, journal)
    assert state.judge is not None
    own = Original(Of(name, None), state.task, state.generator, stage.losses_of(state.task))
    return {
        "begin": "random" if stage.begin is None else "cocktail",
        "steps": stage.steps,
        "seconds": seconds,
        "images": judged(own, state.generator),
        "held_out": state.judge(),
    }


@torch.no_grad()
def pictures(original: Original, generator: Generator, count: int) -> Tensor:
    """Images of a generator from the canvases and classes that are its original's, (count, C, H, W)."""
    with drawing(1):
        start, labels = original.generator.starts(original.task.batch)
        images: Tensor = generator(start, labels)
    return images[:count]


def distance(original: Original, generator: Generator) -> float:
    """Mean |difference| of pixels, from 0 to 1, to what the original draws from the same canvases and classes."""
    low, high = original.task.card.bounds()
    both = [pictures(original, g, original.task.batch) for g in (generator, original.generator)]
    return float(((both[0] - both[1]) / (high - low)).abs().mean())


def sheet(given: Sequence[Original], kinds: Mapping[str, Sequence[Generator]], path: Path) -> None:
    """A row of pictures for each kind and network."""
    figure = Figure(figsize=(8, 0.86 * len(kinds) * len(given)))
    axes = figure.subplots(len(kinds) * len(given), 1, squeeze=False)[:, 0]
    places = [(i, kind) for i in range(len(given)) for kind in kinds]
    for axis, (i, kind) in zip(axes, places, strict=True):
        low, high = given[i].task.card.bounds()
        pixels = (pictures(given[i], kinds[kind][i], COLUMNS) - low) / (high - low)
        axis.imshow(torch.cat([*pixels.clamp(0, 1)], 2).permute(1, 2, 0).numpy())
        axis.set_ylabel(f"{given[i].of.name}\n{kind}", fontsize=6, rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=90, bbox_inches="tight", pil_kwargs={"quality": 80})


def write(found: Found, output: Path) -> None:
    """What is known until now."""
    told = found | {"judged": {kind: [vars(j) for j in row] for kind, row in found["judged"].items()}}
    told |= {"rows": [row | {"images": vars(row["images"])} for row in found.get("rows", [])]}
    (output / "results.json").write_text(json_text(told, indent=1) + "\n")
    (output / "results.md").write_text("\n".join(tables(found)) + "\n")


def tables(found: Found) -> list[str]:
    """Both tables, as lines of Markdown."""
    lines = ["| images of | for | batch-norm loss | of their class | from the original's |", "|---|---|---|---|---|"]
    for kind, row in found["judged"].items():
        for name, j, far in zip(found["networks"], row, found["distance"][kind], strict=True):
            lines.append(f"| {kind} | {name} | {told_of(j)} | {far:.3f} |")
    new = found.get("new", "a new one")
    lines += ["", f"| {new} begins with | steps | seconds | batch-norm loss | of their class | held-out |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in found.get("rows", []):
        told = f"{row['seconds']:.0f} | {told_of(row['images'])}"
        lines.append(f"| {row['begin']} | {row['steps']} | {told} | {row['held_out']:.4f} |")
    return lines


def told_of(j: Judged) -> str:
    """Two cells of a table."""
    return f"{j.batch_norm:.2f} | {100 * j.agreement:.0f} %"


if __name__ == "__main__":
    cocktail()
