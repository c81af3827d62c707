"""mIoU: how far the classes that a model gives to pixels cover those of the masks."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.data import MASKS, listed, read_mask
from zaq.engine.progress import Progress
from zaq.errors import DataError
from zaq.evaluate.models import Model, answers

__all__ = ["Overlap", "measure_segmentation"]

BATCH = 8
IGNORED = 255  # of a mask: pixels that count nowhere


@dataclass(frozen=True)
class Overlap:
    """Intersection over union, a mean over the classes that occur, and the share of pixels that are right,
    in percent."""

    miou: float
    pixels: float
    total: int

    @classmethod
    def of(cls, confusion: NDArray[np.int64], total: int) -> "Overlap":
        """From how often class i (row) was taken for class j (column)."""
        hits, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
        return cls(
            100 * float((hits / union.clip(1))[union > 0].mean()), 100 * float(hits.sum() / confusion.sum()), total
        )

    def fields(self) -> dict[str, float]:
        return {"miou": self.miou, "pixel_accuracy": self.pixels, "total": self.total}

    def __str__(self) -> str:
        return f"mIoU {self.miou:.2f} %, {self.pixels:.2f} % of the pixels right ({self.total} images)"


def measure_segmentation(
    model: Model,
    data: str,
    card: Card,
    limit: int | None = None,
    progress: Progress | None = None,
    teacher: Model | None = None,
) -> Overlap:
    """Of one output (N, classes, h, w), brought to the size of the model's input bilinearly; see
    `zaq.evaluate.models.Task`.
    """
    confusion, total = np.zeros((0, 0), np.int64), 0
    for _, found, samples in answers(model, listed(data, card, MASKS), card, BATCH, limit, progress, data):
        if len(found) != 1 or found[0].ndim != 4:
            raise DataError(
                f"mIoU needs one output (N, classes, H, W); this model has {[list(o.shape) for o in found]}."
            )
        classes = found[0].shape[1]
        if not total:
            confusion = np.zeros((classes, classes), np.int64)
        logits = F.interpolate(torch.from_numpy(found[0]), card.input[1:], mode="bilinear")  # the same, where it fits
        masks = np.stack([read_mask(s, card) for s in samples]).astype(np.int64)
        for sample, mask in zip(samples, masks, strict=True):
            if wrong := set(np.unique(mask).tolist()) - {*range(classes), IGNORED}:
                raise DataError(
                    f"{sample.label}: holds class {min(wrong)}; the model knows 0..{classes - 1}, and {IGNORED} "
                    "counts nowhere."
                )
        seen = masks != IGNORED
        pairs = masks[seen] * classes + logits.numpy().argmax(1)[seen]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        total += len(samples)
    if not confusion.sum():
        raise DataError(f"--data {data}: its masks hold nothing but {IGNORED}, which counts nowhere.")
    return Overlap.of(confusion, total)
