"""mAP: how well the boxes that are found cover those of the labels, by COCO's own tool."""

import contextlib
import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from zaq.config.card import Card
from zaq.data import BOXES, listed
from zaq.engine.progress import Progress
from zaq.errors import DataError, install
from zaq.evaluate.boxes import decode, thresholds
from zaq.evaluate.models import Model, answers
from zaq.export.session import session

__all__ = ["Precision", "measure_detection", "suppress"]

BATCH = 16


@dataclass(frozen=True)
class Precision:
    """Mean average precision in percent, at an overlap of 0.5 and as the mean over 0.5 to 0.95 (COCO)."""

    map50: float
    map: float
    total: int

    def fields(self) -> dict[str, float]:
        return {"map50": self.map50, "map": self.map, "total": self.total}

    def __str__(self) -> str:
        return f"mAP@50 {self.map50:.2f} %, mAP@50:95 {self.map:.2f} % ({self.total} images)"


def measure_detection(
    model: Model,
    data: str,
    card: Card,
    limit: int | None = None,
    progress: Progress | None = None,
    teacher: Model | None = None,
) -> Precision:
    """Of the boxes that `zaq.evaluate.boxes` reads off the outputs; see `zaq.evaluate.models.Task`.

    All boxes are measured in pixels of the model's input. Raises DataError where pycocotools is not installed.
    """
    _coco()
    samples = listed(data, card, BOXES)
    height, width = card.input[1:]
    (least, overlap), sides = thresholds(card), np.array([width, height, width, height], np.float32)
    wanted: list[NDArray[np.float32]] = []
    found: list[NDArray[np.float32]] = []  # an image each, (n, 5 or 6): class, x1, y1, x2, y2, score
    for _, outputs, batch in answers(model, samples, card, BATCH, limit, progress, data):
        boxes, scores = decode(outputs, card)
        boxes = boxes.clip(0, 1) * sides
        kept = suppress(boxes, scores, overlap, least)
        for i, sample in enumerate(batch):
            _, classes, index = kept[kept[:, 0] == i].T
            found.append(np.column_stack([classes, boxes[i, index], scores[i, index, classes]]))
            wanted.append(np.column_stack([sample.label[:, :1], sample.label[:, 1:].clip(0, 1) * sides]))
    if not sum(map(len, wanted)):
        raise DataError(f"--data {data}: its labels hold no object of a class that the model knows.")
    return Precision(*mean_precision(found, wanted), len(wanted))


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], overlap: float, least: float
) -> NDArray[np.int64]:
    """Which boxes (N, A, 4) are of which class by their scores (N, A, K) and lie under no better one: rows image,
    class, box.

    onnxruntime's own operator, class by class.
    """
    limits = [np.array([boxes.shape[1]], np.int64), np.array([overlap], np.float32), np.array([least], np.float32)]
    feed = dict(zip("bsmol", [boxes, scores.transpose(0, 2, 1), *limits], strict=True))
    kept: NDArray[np.int64] = _suppressor().run(None, {k: np.ascontiguousarray(v) for k, v in feed.items()})[0]
    return kept


@functools.cache
def _suppressor() -> ort.InferenceSession:
    kinds = {
        "b": TensorProto.FLOAT,
        "s": TensorProto.FLOAT,
        "m": TensorProto.INT64,
        "o": TensorProto.FLOAT,
        "l": TensorProto.FLOAT,
    }
    shapes: dict[str, list[str | int | None]] = {"b": ["N", "A", 4], "s": ["N", "K", "A"]}
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", list(kinds), ["kept"])],
        "nms",
        [helper.make_tensor_value_info(k, kind, shapes.get(k, [1])) for k, kind in kinds.items()],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, ["n", 3])],
    )
    return session(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


def mean_precision(found: list[NDArray[np.float32]], wanted: list[NDArray[np.float32]]) -> tuple[float, float]:
    """mAP at an overlap of 0.5, and its mean over 0.5 to 0.95, in percent, of boxes found and wanted in each image."""
    coco, evaluation = _coco()

    def entries(boxes: list[NDArray[np.float32]]) -> list[dict[str, Any]]:
        rows = [(i, *map(float, row)) for i, image in enumerate(boxes, 1) for row in image]
        return [
            {
                "id": n,
                "image_id": i,
                "category_id": int(c),
                "bbox": [x, y, x2 - x, y2 - y],
                "area": (x2 - x) * (y2 - y),
                "iscrowd": 0,
            }
            | ({"score": score[0]} if score else {})
            for n, (i, c, x, y, x2, y2, *score) in enumerate(rows, 1)
        ]

    truth, guesses = coco(), coco()
    images = [{"id": i} for i in range(1, len(wanted) + 1)]
    categories = [{"id": int(c)} for c in np.unique(np.concatenate([w[:, 0] for w in wanted]))]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for side, boxes in ((truth, wanted), (guesses, found)):
            side.dataset = {"images": images, "categories": categories, "annotations": entries(boxes)}
            side.createIndex()
        run = evaluation(truth, guesses, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return 100 * float(run.stats[1]), 100 * float(run.stats[0])


def _coco() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise DataError(
            f"detection is measured by pycocotools, which is not installed: {install('detection')}."
        ) from error
    return COCO, COCOeval
