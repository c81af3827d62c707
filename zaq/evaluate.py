"""How good is it: top-1 of an ONNX file in onnxruntime, or of a module in torch, on labelled images."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from zaq.config import Card
from zaq.data import batches, count
from zaq.errors import DataError, SourceError
from zaq.export.session import run_session, session
from zaq.progress import Progress

__all__ = ["Score", "predictions", "stored_card", "top1"]

BATCH = 100
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """How many of how many images are classified right."""

    correct: int
    total: int

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

    def __str__(self) -> str:
        return f"top-1 {self.percent:.2f} % (+-{self.interval:.2f}, {self.correct} of {self.total} images)"


def top1(path: Path, data: str, card: Card, limit: int | None = None, progress: Progress | None = None) -> Score:
    """Top-1 of the ONNX file at `path` on `data` (see `zaq.data.batches`), preprocessed as the card says."""
    run = session(path)
    _refuse_unless_classes([o.shape for o in run.get_outputs()], str(path))
    return Score.of(*predictions(run, data, card, limit, progress))


@torch.no_grad()
def predictions(
    model: nn.Module | ort.InferenceSession, data: str, card: Card, limit: int | None = None, progress: Progress | None = None
) -> tuple[Labels, Labels]:
    """The class that `model` finds in each image of `data`, in their order, and the one it is labelled with.

    Two models' answers to the same images say more about which is better than their scores, hence not the score alone.
    """
    total = count(data, card) if limit is None else min(limit, count(data, card))
    if total < 1:
        raise DataError(f"--data {data}: no images within a limit of {limit}.")
    steps = (progress or Progress()).track("eval", math.ceil(total / BATCH))
    found = [
        (_classes(model, images), labels.numpy()) for _, (images, labels) in zip(steps, batches(data, card, BATCH, total), strict=True)
    ]
    predicted, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    return predicted, labels


def stored_card(path: Path) -> Card:
    """The card that zaq wrote into an ONNX file. Raises SourceError for a file without one."""
    text = session(path).get_modelmeta().custom_metadata_map.get("zaq.card")
    if text is None:
        raise SourceError(f"{path}: holds no card, so it was not written by zaq, or it was changed since; a run of zaq quantize has one.")
    return Card.from_dict(json.loads(text))


def _classes(model: nn.Module | ort.InferenceSession, images: torch.Tensor) -> Labels:
    if isinstance(model, nn.Module):
        device = next((p.device for p in model.parameters()), images.device)
        outputs = [t.cpu().numpy() for t in pytree.tree_leaves(model(images.to(device)))]
    else:
        outputs = run_session(model, images)
    _refuse_unless_classes([list(o.shape) for o in outputs], "the model")
    return np.asarray(outputs[0].argmax(1), np.int64)


def _refuse_unless_classes(shapes: list[list[int | str]] | list[list[int]], name: str) -> None:
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise DataError(f"{name}: top-1 needs one output (N, classes); this model has {shapes}.")
