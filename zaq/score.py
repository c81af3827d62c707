"""How alike two sets of images are to a teacher: those of runs, those that their generators draw, those of a data set.

Nothing that a method does rests on it: no method can import this file, a test holds that.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zaq.api import teacher_of
from zaq.compute.devices import CPU
from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.data import ANY, listed, loaded
from zaq.engine.images import images_in
from zaq.engine.progress import Progress
from zaq.engine.task import Task
from zaq.engine.work import Work
from zaq.errors import SourceError, unknown
from zaq.ir.move import moved, onto
from zaq.run import Run
from zaq.sources import Source
from zaq.synth.density import NEIGHBOURS, Alike, features, measure

__all__ = ["KINDS", "score"]

DRAWN = 1024  # images that a generator draws, where no limit is said
Images = tuple[int, Iterator[Tensor]]  # how many, and batches of them, as the model reads them


def score(
    teacher: Source,
    real: str,
    drawn: str,
    k: int = NEIGHBOURS,
    limit: int | None = None,
    progress: Progress | None = None,
    device: torch.device = CPU,
) -> Alike:
    """Density, coverage, precision and recall of `drawn` images against `real` ones, by k neighbours.

    Each set is spelt RUN (what it learned from), held-out:RUN, generator:RUN (drawn anew), or as a data set,
    `kind:PATH`. `limit`: so many of each at most, evenly spread over the set.
    Raises SourceError for a run of another model or without such images, DataError for a data set that is none,
    UserError where a set has no k neighbours.
    """
    graph, card, _ = teacher_of(teacher.graph, teacher.card)
    task = Task(onto(graph, device), QConfig.parse("w8a8"), card, work=Work(device))
    told = {"name": teacher.name, "sha256": teacher.sha256, "card": card}
    sets = [_open(spec, task, told, limit) for spec in (real, drawn)]  # both, before the work on either
    of_real, of_drawn = (features(task, _shown(images, spec, progress or Progress(), task)) for spec, images in sets)
    return measure(of_real, of_drawn, k)


def _open(spec: str, task: Task, told: dict[str, Any], limit: int | None) -> tuple[str, Images]:
    kind, colon, place = spec.partition(":")
    if colon and kind in ANY:
        samples = _some(listed(spec, task.card, ANY), limit)
        return spec, (len(samples), (x for x, _ in loaded(samples, task.card, task.batch)))
    path = Path(place if colon and kind in KINDS else spec)
    if not path.is_dir():
        if colon:
            raise SourceError(f"{spec}: " + unknown("kind of images", kind, [*KINDS, *ANY]))
        raise SourceError(f"{spec}: is no folder; a run of zaq quantize is one. A data set is written as kind:PATH.")
    return spec, KINDS[kind if colon and kind in KINDS else ""](path, task, told, limit)


def _learned_from(path: Path, task: Task, told: dict[str, Any], limit: int | None) -> Images:
    found = images_in(path, told)["images"]
    if found is None:
        raise SourceError(f"{path}: its method kept no images that it learned from; held-out:{path} may have some.")
    return _batches(found, task, limit)


def _held_out(path: Path, task: Task, told: dict[str, Any], limit: int | None) -> Images:
    run = Run.open(path)
    source = run.options()["source"]
    if source.get("sha256") != told["sha256"] or run.card() != task.card:
        raise SourceError(
            f"{path}: is a run of another model, {source.get('name')!s:.80}, or of the same with another card; "
            "--teacher and its flags say which."
        )
    return _batches(run.samples(), task, limit)


def _generated(path: Path, task: Task, told: dict[str, Any], limit: int | None) -> Images:
    generator = moved(images_in(path, told)["generator"], task.device)
    if generator is None:
        raise SourceError(f"{path}: its method kept no generator.")
    count = limit or DRAWN

    def draw() -> Iterator[Tensor]:
        for at in range(0, count, task.batch):
            with drawing(at):
                yield generator.draw(task.batch)[: count - at]

    return count, draw()


KINDS: dict[str, Callable[[Path, Task, dict[str, Any], int | None], Images]] = {
    "": _learned_from,
    "generator": _generated,
    "held-out": _held_out,
}


def _batches(images: Tensor, task: Task, limit: int | None) -> Images:
    images = _some(images, limit)
    return len(images), iter(images.split(task.batch))


def _some(items: Any, limit: int | None) -> Any:
    """So many of them at most, evenly spread: they may be in the order of classes."""
    if limit is None or len(items) <= limit:
        return items
    places = [i * len(items) // limit for i in range(limit)]
    return items[places] if isinstance(items, Tensor) else [items[i] for i in places]


def _shown(images: Images, spec: str, progress: Progress, task: Task) -> Iterator[Tensor]:
    count, batches = images
    for _ in progress.track(spec, -(-count // task.batch)):
        yield next(batches)
