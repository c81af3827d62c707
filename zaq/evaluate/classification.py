"""Top-1 and top-5: how often the greatest of an image's outputs, or one of the greatest five, is that of its class."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zaq.config.card import Card
from zaq.data import classified
from zaq.engine.progress import Progress
from zaq.errors import DataError
from zaq.evaluate.models import Model, answers, outputs
from zaq.export.session import session

__all__ = ["Score", "measure_batches", "measure_classification", "predictions", "ranked", "score_of", "top1"]

BATCH = 100
FIRST = 5  # classes that one of is to be right
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """How many of how many images are classified right; `among5`: how many have their class among the first five, where
    there are more classes than that.
    """

    correct: int
    total: int
    among5: int | None = None

    @classmethod
    def of(cls, predicted: Labels, labels: Labels) -> "Score":
        """What `predictions` found, counted."""
        return cls(int((predicted == labels).sum()), len(labels))

    @property
    def percent(self) -> float:
        return 100 * self.correct / self.total

    @property
    def interval(self) -> float:
        """Half the 95 % interval, in points, from the number of images (normal approximation of the binomial)."""
        p = self.correct / self.total
        return 100 * 1.96 * math.sqrt(p * (1 - p) / self.total)

    @property
    def percent5(self) -> float | None:
        return None if self.among5 is None else 100 * self.among5 / self.total

    def fields(self) -> dict[str, float]:
        found: dict[str, float] = {"top1": self.percent, "interval": self.interval}
        found |= {"correct": self.correct, "total": self.total}
        return found if self.percent5 is None else found | {"top5": self.percent5}

    def __str__(self) -> str:
        five = "" if self.percent5 is None else f", top-5 {self.percent5:.2f} %"
        return f"top-1 {self.percent:.2f} % (+-{self.interval:.2f}, {self.correct} of {self.total} images){five}"


def top1(path: Path, data: str, card: Card, limit: int | None = None, progress: Progress | None = None) -> Score:
    """Top-1 of the ONNX file at `path` on `data` (see `zaq.data.batches`), preprocessed as the card says."""
    run = session(path)
    _refuse_unless_classes([o.shape for o in run.get_outputs()], str(path))
    return measure_classification(run, data, card, limit, progress)


def measure_classification(
    model: Model,
    data: str,
    card: Card,
    limit: int | None = None,
    progress: Progress | None = None,
    teacher: Model | None = None,
) -> Score:
    """Top-1 and top-5 on images of one class each; see `zaq.evaluate.models.Task`."""
    return score_of(*ranked(model, data, card, limit, progress))


def score_of(ranks: Labels, labels: Labels) -> Score:
    """What `ranked` found, counted."""
    right = ranks == labels[:, None]
    among5 = int(right.any(1).sum()) if ranks.shape[1] == FIRST else None
    return Score(int(right[:, 0].sum()), len(labels), among5)


def measure_batches(model: Model, batches: Iterable[tuple[Tensor, Tensor]], limit: int | None = None) -> Score:
    """Top-1 on batches of images (n, C, H, W), normalised as the model expects, and their classes (n,), as a DataLoader
    gives them; `limit`: the first images only.

    Raises DataError for anything else, and where there are none.
    """
    score = Score(0, 0)
    for batch in batches:
        images, labels = _checked(batch)
        left = len(images) if limit is None else limit - score.total
        found = outputs(model, images[:left])
        _refuse_unless_classes([list(o.shape) for o in found], "the model")
        one = Score.of(found[0].argmax(1).astype(np.int64), labels[:left].numpy().astype(np.int64))
        score = Score(score.correct + one.correct, score.total + one.total)
        if score.total == limit:
            break
    if not score.total:
        raise DataError("evaluate: the batches hold no images; an iterator that was gone through once holds none.")
    return score


def _checked(batch: object) -> tuple[Tensor, Tensor]:
    """A batch that is one. Raises DataError."""
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(parts) != 2 or not all(isinstance(p, Tensor) for p in parts):
        kinds = ", ".join(type(p).__name__ for p in parts)
        raise DataError(f"evaluate: a batch is ({kinds}); images and labels are expected, two tensors.")
    images, labels = parts
    if not images.is_floating_point():
        raise DataError(f"evaluate: the images are {images.dtype}; normalised ones in floating point are expected.")
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"evaluate: the labels are {labels.dtype} {tuple(labels.shape)}; a whole number for each of "
            f"{len(images)} images is expected."
        )
    return images.float(), labels.cpu()


def predictions(
    model: Model, data: str, card: Card, limit: int | None = None, progress: Progress | None = None
) -> tuple[Labels, Labels]:
    """The class that `model` finds in each image of `data`, in their order, and the one it is labelled with.

    Two models' answers to the same images say more about which is better than their scores, hence not the score alone.
    """
    ranks, labels = ranked(model, data, card, limit, progress)
    return ranks[:, 0], labels


def ranked(
    model: Model, data: str, card: Card, limit: int | None = None, progress: Progress | None = None
) -> tuple[Labels, Labels]:
    """The classes that `model` finds in each image of `data`, the likeliest first: (N, 5), or (N, 1) where it knows no
    more than five; and what the images are labelled with, (N,).
    """
    ranks, labels = [], []
    for _, found, samples in answers(model, classified(data, card), card, BATCH, limit, progress, data):
        _refuse_unless_classes([list(o.shape) for o in found], "the model")
        first = FIRST if found[0].shape[1] > FIRST else 1
        ranks.append(np.argsort(-found[0], 1, kind="stable")[:, :first])  # of equals the first, as argmax has it
        labels += [s.label for s in samples]
    return np.concatenate(ranks).astype(np.int64), np.array(labels, np.int64)


def _refuse_unless_classes(shapes: list[list[int | str]] | list[list[int]], name: str) -> None:
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise DataError(
            f"{name}: top-1 needs one output (N, classes); this model has {shapes}. --task names another measure."
        )
