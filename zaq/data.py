"""Labelled images as people have them on disk. For measuring only: no method is ever handed one of these.

Images come out as float32 (N, C, H, W) in [0, 1]; `prepare` brings them to what a model's card asks for.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from zaq.config import Card
from zaq.errors import DataError, unknown

__all__ = ["DATASETS", "batches"]

Batch = tuple[torch.Tensor, torch.Tensor]  # (n, C, H, W) as the model reads it, (n,) labels
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def batches(spec: str, card: Card, size: int = 100, limit: int | None = None) -> Iterator[Batch]:
    """The images of `cifar10:DIR`, `cifar100:DIR` or `csv:DIR` (labels.csv with file,label) in batches, normalised.

    Raises DataError, naming the path, for a wrong layout, a label out of range or an image that cannot be read.
    """
    kind, colon, place = spec.partition(":")
    if not colon or kind not in DATASETS:
        raise DataError(f"--data {spec}: " + unknown("kind of data set", kind, DATASETS) + " Write it as kind:PATH.")
    if not Path(place).exists():
        raise DataError(f"--data {spec}: {place} does not exist.")
    if card.normalised:
        raise DataError("the model's normalisation is unknown, so images cannot be prepared; quantize with --normalize.")
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (card.mean, card.std))
    images: list[NDArray[np.float32]] = []
    labels: list[int] = []
    for count, (image, label, where) in enumerate(DATASETS[kind](Path(place), card)):
        if limit is not None and count >= limit:
            break
        if card.classes is not None and not 0 <= label < card.classes:
            raise DataError(f"{where}: label {label} is outside 0..{card.classes - 1}.")
        if image.shape != tuple(card.input):
            raise DataError(f"{where}: an image of {image.shape} for a model that takes {tuple(card.input)}.")
        images.append((image - mean) / std)
        labels.append(label)
        if len(images) == size:
            yield torch.from_numpy(np.stack(images)), torch.tensor(labels)
            images, labels = [], []
    if images:
        yield torch.from_numpy(np.stack(images)), torch.tensor(labels)


Sample = tuple[NDArray[np.float32], int, str]  # (C, H, W) in [0, 1], label, where it came from


def _records(path: Path, heads: int) -> Iterator[Sample]:
    """CIFAR's binary layout: `heads` label bytes, the last of which counts, then 3072 bytes of an image."""
    if not path.is_file():
        raise DataError(f"{path}: not found; the official binary layout is expected.")
    raw = np.fromfile(path, np.uint8)
    if not len(raw) or len(raw) % (3072 + heads):
        raise DataError(f"{path}: {len(raw)} bytes are no whole number of {3072 + heads}-byte records.")
    for index, record in enumerate(raw.reshape(-1, 3072 + heads)):
        image = record[heads:].reshape(3, 32, 32).astype(np.float32) / np.float32(255)
        yield image, int(record[heads - 1]), f"{path}, record {index}"


def _cifar10(root: Path, card: Card) -> Iterator[Sample]:
    nested = root / "cifar-10-batches-bin"
    return _records((nested if nested.is_dir() else root) / "test_batch.bin", heads=1)


def _cifar100(root: Path, card: Card) -> Iterator[Sample]:
    nested = root / "cifar-100-binary"
    return _records((nested if nested.is_dir() else root) / "test.bin", heads=2)


def _csv(root: Path, card: Card) -> Iterator[Sample]:
    table = root / "labels.csv"
    if not table.is_file():
        raise DataError(f"{table}: not found; csv:DIR needs a labels.csv with the columns file and label.")
    with table.open(newline="") as stream:
        rows = csv.DictReader(stream)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise DataError(f"{table}: the columns are {rows.fieldnames}; file and label are needed.")
        for line, row in enumerate(rows, 2):
            if not row["label"].strip().isdigit():
                raise DataError(f"{table}, line {line}: label {row['label']!r} is no class number.")
            yield _read(root / row["file"], card), int(row["label"]), str(root / row["file"])


def _read(path: Path, card: Card) -> NDArray[np.float32]:
    """One image as (C, H, W) in [0, 1]: resized and centre-cropped as the card says."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB" if card.input[0] == 3 else "L")
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}).") from error
    height, width = card.input[1:]
    resampling = RESAMPLING[card.interpolation]
    if card.crop is not None or card.resize not in (None, height):  # shorter side to `resize`, then the centre
        shorter = card.resize or card.crop or height
        ratio = shorter / min(image.size)
        image = image.resize((round(image.width * ratio), round(image.height * ratio)), resampling)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    elif image.size != (width, height):
        image = image.resize((width, height), resampling)
    pixels = np.asarray(image, np.float32) / np.float32(255)
    chw: NDArray[np.float32] = np.moveaxis(pixels if pixels.ndim == 3 else pixels[..., None], -1, 0)
    return chw


DATASETS: dict[str, Callable[[Path, Card], Iterator[Sample]]] = {"cifar10": _cifar10, "cifar100": _cifar100, "csv": _csv}
