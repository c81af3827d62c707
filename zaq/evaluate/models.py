"""What tasks share: a file and a module are asked alike, a batch of images at a time, and answer with a result."""

import math
from collections.abc import Iterator
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zaq.config.card import Card
from zaq.data import Sample, loaded
from zaq.engine.progress import Progress
from zaq.errors import DataError, RunError
from zaq.export.session import run_session
from zaq.ir.move import device_of

__all__ = ["Model", "Result", "Task", "answers", "outputs"]

Model: TypeAlias = nn.Module | ort.InferenceSession
Values = NDArray[np.float32]
L = TypeVar("L")


class Result(Protocol):
    """What was measured on how many images."""

    @property
    def total(self) -> int: ...

    def fields(self) -> dict[str, float]:
        """Name -> value, the one that counts first."""


class Task(Protocol):
    """Measure a model on `data`, prepared as the card says. `teacher`: the float model, for tasks that have no other
    truth.
    """

    def __call__(
        self,
        model: Model,
        data: str,
        card: Card,
        limit: int | None = None,
        progress: Progress | None = None,
        teacher: Model | None = None,
    ) -> Result: ...


@torch.no_grad()
def outputs(model: Model, images: Tensor) -> list[Values]:
    """The outputs for a batch of normalised images (n, C, H, W), each (n, ...)."""
    if not isinstance(model, nn.Module):
        return run_session(model, images)
    return [t.cpu().numpy() for t in pytree.tree_leaves(model(images.to(device_of(model))))]


def answers(
    model: Model,
    samples: list[Sample[L]],
    card: Card,
    size: int,
    limit: int | None,
    progress: Progress | None,
    data: str,
) -> Iterator[tuple[Tensor, list[Values], list[Sample[L]]]]:
    """For each batch of the first `limit` samples: the images, the model's outputs, and what the images are of."""
    chosen = samples[:limit]
    if not chosen:
        raise DataError(f"--data {data}: no images within a limit of {limit}.")
    steps = (progress or Progress()).track(
        "eval" + (" float" if isinstance(model, nn.Module) else ""), math.ceil(len(chosen) / size)
    )
    for _, (images, batch) in zip(steps, loaded(chosen, card, size), strict=True):
        found = outputs(model, images)
        if broken := sum(int((~np.isfinite(o)).any(axis=tuple(range(1, o.ndim))).sum()) for o in found):
            raise RunError(
                f"--data {data}: the model's outputs for {broken} of {len(batch)} images, from {batch[0].where} on, are"
                " NaN or infinite; there is nothing to measure."
            )
        yield images, found, batch
