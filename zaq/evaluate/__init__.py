"""How good is it: an ONNX file in onnxruntime, or a module in torch, on images that nothing before has seen.

A task says what outputs mean; one a file, each a function in TASKS. Where no task is named it is the card's, else
classification.
"""

from pathlib import Path
from typing import Any

from zaq.config.bounds import plain_json
from zaq.config.card import Card
from zaq.data import BOXES, DATASETS, IMAGES, MASKS
from zaq.errors import SourceError, unknown
from zaq.evaluate.boxes import decode, read_decode
from zaq.evaluate.classification import (
    Score,
    measure_batches,
    measure_classification,
    predictions,
    ranked,
    score_of,
    top1,
)
from zaq.evaluate.detection import measure_detection
from zaq.evaluate.image import measure_likeness
from zaq.evaluate.models import Model, Result, Task, outputs
from zaq.evaluate.segmentation import measure_segmentation
from zaq.export.session import properties

__all__ = [
    "LAYOUTS",
    "TASKS",
    "Model",
    "Result",
    "Score",
    "Task",
    "class_names",
    "decode",
    "measure_batches",
    "outputs",
    "predictions",
    "ranked",
    "read_decode",
    "score_of",
    "stored_card",
    "task_of",
    "top1",
]

TASKS: dict[str, Task] = {
    "classification": measure_classification,
    "detection": measure_detection,
    "image": measure_likeness,
    "segmentation": measure_segmentation,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "classification": DATASETS,
    "detection": BOXES,
    "image": IMAGES,
    "segmentation": MASKS,
}


def task_of(card: Card, name: str | None = None) -> str:
    """The name of the task: the one given, else the card's, else classification. Raises SourceError for one there is
    not.
    """
    found = name or card.task or "classification"
    if found not in TASKS:
        raise SourceError(("--task: " if name else "card: ") + unknown("task", found, TASKS))
    return found


def stored_card(path: Path) -> Card:
    """The card that zaq wrote into an ONNX file. Raises SourceError for a file without one."""
    text = properties(path).get("zaq.card")
    if text is None:
        raise SourceError(
            f"{path}: holds no card, so it was not written by zaq, or it was changed since; a run of zaq quantize has "
            "one."
        )
    try:
        return Card.from_dict(plain_json(text))
    except (ValueError, SourceError) as error:
        raise SourceError(
            f"{path}: its property zaq.card, which says how images are prepared, is none: {error}"
        ) from error


def class_names(path: Path) -> tuple[str, ...]:
    """What zaq wrote into an ONNX file of the names of its classes; none where the source had none."""
    text = properties(path).get("zaq.classes", "[]")
    try:
        return Card.from_dict({"class_names": plain_json(text)}).class_names
    except (ValueError, SourceError) as error:
        raise SourceError(f"{path}: its property zaq.classes, the names of classes, is none: {error}") from error
