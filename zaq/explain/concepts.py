"""The images that units are looked at on, and the concepts that hold in them, of a labelled data set or of a run alone.

Labels are read for diagnosis, never by a method: no method can import this, a test holds that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zaq.config.bounds import plain_text
from zaq.config.card import Card
from zaq.data import ANY, BOXES, DATASETS, IMAGES, MASKS, Sample, listed, loaded, read_mask
from zaq.data.pixels import read
from zaq.errors import DataError
from zaq.explain.groups import groups_of
from zaq.explain.names import CLASSES
from zaq.run import Run

__all__ = ["GRID", "Probe", "probe_of", "probe_of_run"]

GRID = 28  # cells a side, where concepts have a place in an image
IGNORED = 255  # the pixel of a mask that counts nowhere
USUAL = {True: 512, False: 10_000}  # images at most, where no limit is said: with a place in the image or without
Holds = NDArray[np.bool_]


@dataclass(frozen=True)
class Probe:
    """Images and what is known of them.

    names: of the concepts. samples, card: the images, and how they are prepared. holds: of one image (by its number)
    where each concept holds, (K, 1), or (K, cells) where concepts have a place.
    side: cells a side; 1: an image is one cell; None: as many as the layer has places, and the concepts are its own.
    labels: of the images, where each has a class that the network tells apart.
    """

    names: list[str]
    samples: Sequence[Sample[Any]]
    card: Card
    holds: Callable[[int], Holds]
    side: int | None
    labels: tuple[int, ...] | None = None

    def images(self, numbers: Sequence[int]) -> Tensor:
        """Some of them (n, C, H, W), as the model reads them."""
        ((images, _),) = loaded([self.samples[i] for i in numbers], self.card, len(numbers))
        return images

    def concepts(self) -> Tensor:
        """(K, cells), bool: image by image, and row by row inside one."""
        return torch.from_numpy(np.concatenate([self.holds(number) for number in range(len(self.samples))], 1))

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """An image as the model sees it, (H, W, 3) in colour."""
        found = np.moveaxis(read(self.samples[number], self.card), 0, -1)
        found = found[..., ::-1] if self.card.order == "bgr" else found
        return np.ascontiguousarray(np.broadcast_to(found, (*found.shape[:2], 3)))


def probe_of_run(run: Run, limit: int | None = None) -> Probe:
    """The synthetic samples of a run. What holds in them, its float network will say. Raises SourceError for none."""
    card = run.card()
    pixels = run.pixels().numpy()[:limit]
    pixels = pixels[:, ::-1] if card.order == "bgr" else pixels  # stored in the card's order, read in colour's
    samples = [Sample(np.ascontiguousarray(image), None, f"sample {i}") for i, image in enumerate(pixels)]
    plain = card.override(resize=None, crop=None)
    return Probe([], samples, plain, lambda _: np.zeros((0, 1), bool), side=None)


def probe_of(spec: str, card: Card, limit: int | None = None, groups: Path | None = None) -> Probe:
    """The images of a data set `kind:PATH`, so many at most, evenly spread, and its concepts: classes and groups of
    them, boxes, or masks.

    Raises DataError as reading it does; for images without labels, and where fewer than two concepts hold anywhere.
    """
    kind, _, place = spec.partition(":")
    if kind in IMAGES:
        raise DataError(
            f"--data {spec}: holds images alone, and concepts are made of labels; {', '.join(ANY)} have some."
        )
    if kind in BOXES:
        found = _boxes(spec, Path(place), card, limit)
    elif kind in MASKS:
        found = _masks(spec, Path(place), card, limit)
    else:
        found = _classes(spec, kind, card, limit, groups)
    if groups is not None and kind not in DATASETS:
        raise DataError(f"--groups {groups}: are of classes of whole images; {kind} has none.")
    if len(found.names) < 2:
        raise DataError(f"--data {spec}: fewer than two concepts hold in its {len(found.samples)} images.")
    return found


def _classes(spec: str, kind: str, card: Card, limit: int | None, groups: Path | None) -> Probe:
    samples = _some(listed(spec, card, DATASETS), limit or USUAL[False])
    labels = np.array([s.label for s in samples])
    count = card.classes or int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= count:
        raise DataError(f"--data {spec}: label {int(labels.max())} is outside 0..{count - 1}, the model's classes.")
    known = card.class_names or CLASSES.get(kind, ())
    names = [*(known if len(known) == count else [f"class {i}" for i in range(count)])]
    above = groups_of(kind, groups, names)
    held = np.zeros((len(samples), count + len(above)), bool)
    held[np.arange(len(samples)), labels] = True
    for column, members in enumerate(above.values(), count):
        held[:, column] = np.isin(labels, members)
    seen = np.asarray(held.any(0))
    every = [name for name, there in zip([*names, *above], seen.tolist(), strict=True) if there]
    held = held[:, seen]
    return Probe(every, samples, card, lambda number: held[number, :, None], side=1, labels=tuple(labels.tolist()))


def _boxes(spec: str, root: Path, card: Card, limit: int | None) -> Probe:
    """Concepts are the data set's classes, whether the network has such or not."""
    samples = _some(listed(spec, card.override(classes=None, class_names=()), BOXES), limit or USUAL[True])
    numbers = sorted({int(box[0]) for s in samples for box in s.label})
    row = {number: i for i, number in enumerate(numbers)}

    def holds(number: int) -> Holds:
        found = np.zeros((len(numbers), GRID, GRID), bool)
        for label, *corners in samples[number].label:
            left, top, right, bottom = (np.array(corners) * GRID).clip(0, GRID)
            # A cell counts if its middle lies inside; a small object has the cell that it lies in.
            rows = slice(*_cells(top, bottom))
            found[row[int(label)], rows, slice(*_cells(left, right))] = True
        return found.reshape(len(numbers), -1)

    return Probe(_named(root, numbers), samples, card, holds, side=GRID)


def _cells(low: float, high: float) -> tuple[int, int]:
    first, last = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
    middle = min(int((low + high) / 2), GRID - 1)
    return (first, last) if last > first else (middle, middle + 1)


def _masks(spec: str, root: Path, card: Card, limit: int | None) -> Probe:
    samples = _some(listed(spec, card, MASKS), limit or USUAL[True])
    small = [_shrunk(read_mask(s, card)) for s in samples]
    numbers = sorted(set(np.unique(np.stack(small)).tolist()) - {IGNORED})

    def holds(number: int) -> Holds:
        return np.stack([small[number].reshape(-1) == n for n in numbers])

    return Probe(_named(root, numbers), samples, card, holds, side=GRID)


def _shrunk(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask (H, W) at the middles of the grid's cells."""
    rows, columns = (((np.arange(GRID) + 0.5) * size / GRID).astype(int) for size in mask.shape)
    found: NDArray[np.uint8] = mask[rows][:, columns]
    return found


def _named(root: Path, numbers: Sequence[int]) -> list[str]:
    """What the classes of a data set are called, in its own list of names, where there is one that is long enough."""
    for path in sorted([*root.glob("*.names"), *root.glob("classes.txt")]):
        try:
            lines = plain_text(path).strip().splitlines()
        except ValueError as error:
            raise DataError(f"{path}: cannot be read as text ({error}).") from error
        if numbers and len(lines) > max(numbers):
            return [lines[number].strip() or f"class {number}" for number in numbers]
    return [f"class {number}" for number in numbers]


def _some(samples: list[Sample[Any]], limit: int) -> list[Sample[Any]]:
    """So many of them at most, evenly spread: they may be in the order of classes."""
    return samples if len(samples) <= limit else [samples[i * len(samples) // limit] for i in range(limit)]
