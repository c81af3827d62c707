"""Labelled images as people have them on disk, for measuring and for methods that are told to train on real data.

No data-free method can import this; a test holds that. `layouts` and `annotated` know what lies where, `pixels` what a
card makes of an image.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.data.annotated import BOXES, IMAGES, MASKS
from zaq.data.layouts import DATASETS, Layout, Sample
from zaq.data.pixels import read, read_mask
from zaq.errors import DataError, unknown

__all__ = [
    "ANY",
    "BOXES",
    "DATASETS",
    "IMAGES",
    "MASKS",
    "Sample",
    "batches",
    "classified",
    "count",
    "listed",
    "loaded",
    "read_mask",
    "shuffled",
]

L = TypeVar("L")
Batch = tuple[Tensor, Tensor]  # (n, C, H, W) as the model reads it, (n,) labels
SPLITS = ("test", "train")
LABELS: dict[str, dict[str, Any]] = {
    "a class for each image is": DATASETS,
    "boxes are": BOXES,
    "a mask for each image is": MASKS,
    "images alone are": IMAGES,
}
ANY = {kind: layout for kinds in LABELS.values() for kind, layout in kinds.items()}  # where only the images matter
KINDS = {kind: what.rpartition(" ")[0] for what, kinds in LABELS.items() for kind in kinds}
HELD = 2**30  # bytes of decoded images that `shuffled` keeps, so that a small set is read from disk only once
SMALL, PADDING = 64, 4  # images up to SMALL pixels a side are cropped at random out of themselves padded by PADDING


def batches(spec: str, card: Card, size: int = 100, limit: int | None = None, split: str = "test") -> Iterator[Batch]:
    """The images of `kind:PATH` (see `zaq.data.layouts`) in order and in batches, normalised.

    Raises DataError, naming the path, for a wrong layout, a label out of range or an image that cannot be read.
    """
    for images, chosen in loaded(classified(spec, card, split)[:limit], card, size):
        yield images, torch.tensor([s.label for s in chosen])


def count(spec: str, card: Card, split: str = "test") -> int:
    """How many images `batches` goes through. Image files are listed, not opened."""
    return len(classified(spec, card, split))


def shuffled(spec: str, card: Card, size: int, seed: int) -> Iterator[Batch]:
    """Batches of the training part for ever, a new order each time round, mirrored at random and, if small, moved by up
    to 4 pixels.

    Every batch is of `size` images, so that what an order leaves over is dropped; a set smaller than that is one batch.
    """
    samples = classified(spec, card, "train")
    generator = torch.Generator().manual_seed(seed)
    held = functools.lru_cache(HELD // math.prod(card.input))(lambda index: read(samples[index], card))
    while True:
        order = torch.randperm(len(samples), generator=generator)
        for chosen in order[: len(order) - len(order) % size or None].split(size):
            images = torch.from_numpy(np.stack([held(i) for i in chosen.tolist()]))
            yield (
                card.normalised(_augmented(images, generator)),
                torch.tensor([samples[i].label for i in chosen.tolist()]),
            )


def listed(spec: str, card: Card, layouts: dict[str, Layout[L]], split: str = "test") -> list[Sample[L]]:
    """What `kind:PATH` holds in `split`, its kind one of `layouts`: DATASETS (a class an image), BOXES, MASKS or
    IMAGES.

    Raises DataError as `batches` does, and for a kind whose labels are of another sort.
    """
    kind, colon, place = spec.partition(":")
    if colon and kind in KINDS and kind not in layouts:
        wanted = next(what for what, kinds in LABELS.items() if kinds is layouts)
        raise DataError(f"--data {spec}: {kind} holds {KINDS[kind]}, and {wanted} needed: {_spelled(layouts)}.")
    if not colon or kind not in layouts:
        raise DataError(f"--data {spec}: " + unknown("kind of data set", kind, layouts) + " Write it as kind:PATH.")
    if split not in SPLITS:
        raise DataError(f"--data {spec}: " + unknown("part", split, SPLITS))
    path = Path(place)
    if not path.exists():
        raise DataError(f"--data {spec}: {place} does not exist.")
    if path.is_dir() == (kind == "npz"):
        found, needed = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise DataError(f"--data {spec}: {place} is a {found}; {kind} needs a {needed}.")
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"--data {spec}: {place} is neither a folder nor a plain file.")
    if not card.knows_pixels:
        raise DataError(
            "the model's normalisation is unknown, so images cannot be prepared; say --normalize, or --mean and --std."
        )
    return layouts[kind](path, split, card)


def loaded(samples: list[Sample[L]], card: Card, size: int) -> Iterator[tuple[Tensor, list[Sample[L]]]]:
    """Samples in batches: the images (n, C, H, W) as the model reads them, and what they are of."""
    for start in range(0, len(samples), size):
        chosen = samples[start : start + size]
        yield card.normalised(torch.from_numpy(np.stack([read(s, card) for s in chosen]))), chosen


def classified(spec: str, card: Card, split: str = "test") -> list[Sample[int]]:
    """Samples of one class each, checked before an hour is spent on the images."""
    samples = listed(spec, card, DATASETS, split)
    for sample in samples:
        if sample.label < 0 or (card.classes is not None and sample.label >= card.classes):
            raise DataError(
                f"{sample.where}: label {sample.label} is outside 0..{card.classes - 1 if card.classes else ''}."
            )
    return samples


def _spelled(kinds: Iterable[str]) -> str:
    return ", ".join(f"{k}:{'FILE' if k == 'npz' else 'DIR'}" for k in kinds)


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bytes (n, C, H, W): each mirrored or not; small ones padded with black and cut out again somewhere else."""
    n, channels, height, width = images.shape
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    if max(height, width) > SMALL:
        return images
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    batch, colour = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    return F.pad(images, (PADDING,) * 4)[batch, colour, rows[:, None, :, None], columns[:, None, None, :]]
