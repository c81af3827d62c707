"""What a network's outputs say of one photograph, a class a task: as JSON, as rows of a table, as a picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.data.pixels import window
from zaq.errors import DataError, SourceError, unknown
from zaq.evaluate import decode
from zaq.evaluate.boxes import thresholds
from zaq.evaluate.detection import suppress
from zaq.use.draw import Box, blended, boxed

__all__ = ["READERS", "Answer", "Asked", "reader_of"]

Values = NDArray[np.float32]
Row = tuple[str, ...]
SMALL = 1e-3  # by which the sum of probabilities may miss 1


@dataclass(frozen=True)
class Asked:
    """How answers are read: the card, the classes' names where they are known, how many classes are told, and from
    which score on a box counts.
    """

    card: Card
    names: tuple[str, ...] = ()
    top: int = 5
    score: float = 0.3

    def name(self, number: int, of: int) -> str:
        """What a class is called. Names may begin with a background that the outputs leave out."""
        names = self.names[1:] if len(self.names) == of + 1 else self.names
        return names[number] if len(names) == of else f"class {number}"


class Answer(Protocol):
    """One network's answer. `rows` sets another network's beside it; the first row names the columns behind them."""

    def fields(self) -> dict[str, Any]:
        """For JSON."""

    def rows(self, other: Any | None) -> list[Row]:
        """Of a table: what is told, ours, and the other network's where there is one."""

    def picture(self, photo: Image.Image) -> Image.Image | None:
        """What there is to see; None where there is nothing."""


@dataclass(frozen=True)
class Classes:
    """Probabilities of all classes (K,)."""

    probabilities: Values
    asked: Asked

    def fields(self) -> dict[str, Any]:
        found = self._best()
        return {"classes": [{"number": i, "name": self._name(i), "probability": self._of(i)} for i in found]}

    def rows(self, other: "Classes | None") -> list[Row]:
        shown = list(dict.fromkeys([*self._best(), *(other._best()[:1] if other else [])]))
        both = [self, *([other] if other else [])]
        return [("class",), *((self._name(i), *(f"{100 * one._of(i):.1f} %" for one in both)) for i in shown)]

    def picture(self, photo: Image.Image) -> None:
        return None

    def _best(self) -> list[int]:
        return [int(i) for i in np.argsort(-self.probabilities, kind="stable")[: self.asked.top]]

    def _of(self, number: int) -> float:
        return float(self.probabilities[number])

    def _name(self, number: int) -> str:
        return self.asked.name(number, len(self.probabilities))


@dataclass(frozen=True)
class Boxes:
    """Boxes in pixels of the photograph, the surest first."""

    boxes: list[Box]

    def fields(self) -> dict[str, Any]:
        return {"boxes": [{"name": b.name, "score": b.score, "box": list(b.corners)} for b in self.boxes]}

    def rows(self, other: "Boxes | None") -> list[Row]:
        ours, theirs = self._texts(), other._texts() if other else []
        height = max(len(ours), len(theirs), 1)
        columns = [ours or ["none"], *([theirs or ["none"]] if other else [])]
        padded = [[*column, *[""] * (height - len(column))] for column in columns]
        return [("box",), *((str(i), *row) for i, row in enumerate(zip(*padded, strict=True), 1))]

    def picture(self, photo: Image.Image) -> Image.Image:
        return boxed(photo, self.boxes)

    def _texts(self) -> list[str]:
        return [f"{b.name} {100 * b.score:.0f} % at {', '.join(f'{v:.0f}' for v in b.corners)}" for b in self.boxes]


@dataclass(frozen=True)
class Mask:
    """The class of each pixel (H, W) of what the network saw, `region` of the photograph."""

    classes: NDArray[np.int64]
    total: int
    region: tuple[float, float, float, float]
    asked: Asked

    def fields(self) -> dict[str, Any]:
        return {"pixels": {self._name(i): self._share(i) for i in self._seen()}}

    def rows(self, other: "Mask | None") -> list[Row]:
        both = [self, *([other] if other else [])]
        shown = sorted({i for one in both for i in one._seen()}, key=lambda i: -self._share(i))
        rows = [("pixels of",), *((self._name(i), *(f"{100 * m._share(i):.1f} %" for m in both)) for i in shown)]
        same = [("the same class", f"{100 * float((self.classes == other.classes).mean()):.1f} %", "")] if other else []
        return [*rows, *same]

    def picture(self, photo: Image.Image) -> Image.Image:
        return blended(photo, self.classes, self.region, {i: self._name(i) for i in self._seen()})

    def _seen(self) -> list[int]:
        return [int(i) for i in np.unique(self.classes)]

    def _share(self, number: int) -> float:
        return float((self.classes == number).mean())

    def _name(self, number: int) -> str:
        return self.asked.name(number, self.total)


@dataclass(frozen=True)
class Picture:
    """An image (H, W, 3) or (H, W), as bytes."""

    pixels: NDArray[np.uint8]

    def fields(self) -> dict[str, Any]:
        return {"height": self.pixels.shape[0], "width": self.pixels.shape[1]}

    def rows(self, other: "Picture | None") -> list[Row]:
        size = [f"{one.pixels.shape[1]} x {one.pixels.shape[0]}" for one in (self, other) if one]
        if other is None:
            return [("image",), ("size", *size)]
        error = float(((self.pixels.astype(float) - other.pixels) ** 2).mean())
        apart = "equal" if error == 0 else f"{10 * math.log10(255**2 / error):.1f} dB"
        return [("image",), ("size", *size), ("PSNR against float", apart, "")]

    def picture(self, photo: Image.Image) -> Image.Image:
        return Image.fromarray(self.pixels)


@dataclass(frozen=True)
class Embedding:
    """A vector (D,)."""

    vector: Values

    def fields(self) -> dict[str, Any]:
        return {"vector": [float(v) for v in self.vector]}

    def rows(self, other: "Embedding | None") -> list[Row]:
        both = [self, *([other] if other else [])]
        rows: list[Row] = [("vector",), ("length", *(f"{np.linalg.norm(one.vector):.3f}" for one in both))]
        rows += [("begins", *(", ".join(f"{v:.3f}" for v in one.vector[:4]) for one in both))]
        if other:
            size = float(np.linalg.norm(self.vector) * np.linalg.norm(other.vector))
            rows += [("cosine with float", f"{float(self.vector @ other.vector) / max(size, 1e-12):.4f}", "")]
        return rows

    def picture(self, photo: Image.Image) -> None:
        return None


def read_classes(outputs: list[Values], asked: Asked, size: tuple[int, int]) -> Classes:
    """Of one output (1, K): logits, or what a softmax has been through already."""
    values = _only(outputs, 2, "classification", "(N, classes)")
    if values.min() >= 0 and abs(float(values.sum()) - 1) < SMALL:
        return Classes(values, asked)
    odds = np.exp(values - values.max())
    return Classes(odds / odds.sum(), asked)


def read_boxes(outputs: list[Values], asked: Asked, size: tuple[int, int]) -> Boxes:
    """Of raw heads, by the constants in the card's `decode` (`zaq.evaluate.boxes`)."""
    boxes, scores = decode(outputs, asked.card)
    kept = suppress(boxes, scores, thresholds(asked.card)[1], asked.score)
    left, top, right, bottom = window(size, asked.card)
    corners = boxes[0].clip(0, 1) * np.tile([right - left, bottom - top], 2) + np.tile([left, top], 2)
    found = [
        Box(asked.name(k, scores.shape[2]), k, float(scores[0, i, k]), tuple(map(float, corners[i])))
        for _, k, i in kept.tolist()
    ]
    return Boxes(sorted(found, key=lambda b: -b.score))


def read_mask(outputs: list[Values], asked: Asked, size: tuple[int, int]) -> Mask:
    """Of the first output (1, classes, h, w), brought to the size of the model's input bilinearly; one channel alone
    tells what is above 0 from the rest.
    """
    logits = F.interpolate(torch.from_numpy(_maps(outputs[:1], "segmentation")), asked.card.input[1:], mode="bilinear")
    classes = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
    return Mask(classes[0].numpy(), max(logits.shape[1], 2), window(size, asked.card), asked)


def read_picture(outputs: list[Values], asked: Asked, size: tuple[int, int]) -> Picture:
    """Of one output (1, C, h, w), whose values are taken to be normalised as the input's are."""
    values, card = _maps(outputs, "image")[0], asked.card
    if len(values) not in (1, 3):
        raise DataError(f"--task image: an image has 1 or 3 channels; this model's output has {len(values)}.")
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (card.mean, card.std))
    shown = values * std[: len(values)] + mean[: len(values)]
    pixels = np.rint(255 * shown.clip(0, 1)).astype(np.uint8)[:: -1 if card.order == "bgr" else 1]
    return Picture(np.ascontiguousarray(np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels[0]))


def read_embedding(outputs: list[Values], asked: Asked, size: tuple[int, int]) -> Embedding:
    """Of one output, whatever its shape."""
    if len(outputs) != 1:
        raise DataError(f"--task embedding needs one output; this model has {[list(o.shape) for o in outputs]}.")
    return Embedding(outputs[0].reshape(-1))


# How the outputs for one photograph of (width, height) are read, by task.
READERS: dict[str, Callable[[list[Values], Asked, tuple[int, int]], Answer]] = {
    "classification": read_classes,
    "detection": read_boxes,
    "embedding": read_embedding,
    "image": read_picture,
    "segmentation": read_mask,
}


def reader_of(card: Card, task: str | None = None) -> str:
    """The task: the one given, else the card's, else classification. Raises SourceError for one there is not."""
    found = task or card.task or "classification"
    if found not in READERS:
        raise SourceError(("--task: " if task else "card: ") + unknown("task", found, READERS))
    return found


def _maps(outputs: list[Values], task: str) -> Values:
    return _only(outputs, 4, task, "(N, channels, H, W)")[None]


def _only(outputs: list[Values], dims: int, task: str, wanted: str) -> Values:
    """The values of one image in the one output of so many dimensions."""
    if len(outputs) != 1 or outputs[0].ndim != dims:
        raise DataError(
            f"--task {task} needs one output {wanted}; this model has {[list(o.shape) for o in outputs]}. Another "
            f"--task says what they are: {', '.join(READERS)}."
        )
    first: Values = outputs[0][0]
    return first
