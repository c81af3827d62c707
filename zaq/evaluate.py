"""How good is it: top-1 of an ONNX file in onnxruntime, on labelled images."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zaq.config import Card
from zaq.data import batches
from zaq.errors import DataError
from zaq.export.verify import run_session, session

__all__ = ["Score", "top1"]


@dataclass(frozen=True)
class Score:
    correct: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.correct / self.total

    @property
    def interval(self) -> float:
        """Half the 95 % interval, in points, from the number of images (normal approximation of the binomial)."""
        p = self.correct / self.total
        return 100 * 1.96 * math.sqrt(p * (1 - p) / self.total)

    def __str__(self) -> str:
        return f"top-1 {self.percent:.2f} % (+-{self.interval:.2f}, {self.correct} of {self.total} images)"


def top1(path: Path, data: str, card: Card, limit: int | None = None) -> Score:
    """Top-1 of the ONNX file at `path` on `data` (see `zaq.data.batches`), preprocessed as the card says."""
    run = session(path)
    shape = run.get_outputs()[0].shape
    if len(run.get_outputs()) != 1 or len(shape) != 2:
        raise DataError(f"{path}: top-1 needs one output (N, classes); this model has {[o.shape for o in run.get_outputs()]}.")
    correct = total = 0
    for images, labels in batches(data, card, limit=limit):
        correct += int((run_session(run, images)[0].argmax(1) == np.asarray(labels)).sum())
        total += len(labels)
    if not total:
        raise DataError(f"--data {data}: no images.")
    return Score(correct, total)
