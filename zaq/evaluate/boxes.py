"""From a detector's raw outputs to boxes and class scores, by constants that stand in its card or in a file
(`--decode`).

{"kind": "yolov3", "heads": [{"anchors": [[w, h], ...], "scale_x_y": 1.05}, ...]}
    heads in the order of the outputs, each (N, anchors (5 + classes), H, W); anchors in pixels of the model's input:
    centre = (sigmoid(t) s - (s - 1) / 2 + cell) / grid, size = exp(t) anchor / input, score = sigmoid(object)
    sigmoid(class)
{"kind": "ssd", "heads": [{"grid": [H, W], "boxes": [[w, h], ...], "step": 16}, ...], "variances": [0.1, 0.2]}
    outputs (N, boxes, 4) and (N, boxes, 1 + classes), the background first; default boxes in parts of the input's
    sides, cell after cell, row after row, head after head; cells of `step` pixels, or as many as fill the input: centre
    = t v_0 size_0 + centre_0, size = exp(t v_1) size_0, score = softmax(class)

Both may have `score` and `nms`, the least score of a box and the greatest overlap with a better one, and `names`, the
classes in order (see `zaq.data.names`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaq.config.bounds import plain_json, plain_text
from zaq.config.card import Card
from zaq.errors import DataError, unknown

__all__ = ["DECODERS", "decode", "read_decode", "thresholds"]

Values = NDArray[np.float32]
SCORE, NMS = 0.005, 0.45
LARGEST = 1e4  # of a constant: a side in pixels, a step, a number of cells
KEYS = ("kind", "heads", "variances", "score", "nms", "names")


def read_decode(path: Path) -> dict[str, Any]:
    """The constants in a JSON file, or in a card. Raises DataError for a file that holds none."""
    if not path.is_file():
        raise DataError(f"--decode {path}: cannot be read (there is no such file).")
    try:
        values = plain_json(plain_text(path))
    except ValueError as error:
        raise DataError(f"--decode {path}: is not readable as JSON ({error}).") from error
    values = values.get("decode", values) if isinstance(values, dict) else values
    if not isinstance(values, dict) or "kind" not in values:
        raise DataError(f"--decode {path}: an object with the key kind is expected: {', '.join(DECODERS)}.")
    return values


def thresholds(card: Card) -> tuple[float, float]:
    """The least score of a box that counts, and the greatest overlap with a better one of its class."""
    constants = card.decode or {}
    return _number(constants, "score", SCORE), _number(constants, "nms", NMS)


def decode(outputs: list[Values], card: Card) -> tuple[Values, Values]:
    """Boxes (N, A, 4) as x1, y1, x2, y2 in parts of the input's width and height, and scores (N, A, classes).

    Raises DataError where the card has no constants, or others than the outputs need.
    """
    constants = card.decode
    if constants is None:
        raise DataError(
            "detection needs the constants that make boxes of outputs; name their file with --decode, or put them "
            "into the card."
        )
    for key in constants:
        if key not in KEYS:
            raise DataError("decode: " + unknown("key", str(key), KEYS))
    kind = constants.get("kind")
    if not isinstance(kind, str) or kind not in DECODERS:
        raise DataError("decode: " + unknown("kind", str(kind), DECODERS))
    centre, size, scores = DECODERS[kind](outputs, constants, card)
    boxes = np.concatenate([centre - size / 2, centre + size / 2], -1)
    return boxes.astype(np.float32), scores.astype(np.float32)


def _yolov3(outputs: list[Values], constants: dict[str, Any], card: Card) -> tuple[Any, Any, Any]:
    heads = _heads(constants)
    if len(heads) != len(outputs):
        raise DataError(f"decode: {len(heads)} heads for a model of {_shapes(outputs)}; one an output is expected.")
    sides = np.array(card.input[:0:-1], np.float32)
    found = []
    for i, (head, t) in enumerate(zip(heads, outputs, strict=True)):
        anchors = _pairs(head, "anchors", f"heads[{i}]")
        classes = card.classes or (t.shape[1] // len(anchors) - 5 if t.ndim == 4 else 0)
        channels = len(anchors) * (5 + classes)
        if t.ndim != 4 or t.shape[1] != channels or classes < 1:
            raise DataError(
                f"decode: heads[{i}]: the model's output {i} is {_shapes([t])}; (N, {channels}, H, W) was expected, "
                f"for {len(anchors)} anchors of 5 + {classes} channels."
            )
        n, _, height, width = t.shape
        t = t.reshape(n, len(anchors), 5 + classes, height, width).transpose(
            0, 3, 4, 1, 2
        )  # (n, H, W, anchors, 5 + classes)
        s = _number(head, "scale_x_y", 1.0)
        cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)[:, :, None]  # x, y
        centre = (_sigmoid(t[..., :2]) * s - (s - 1) / 2 + cells) / (width, height)
        size = _exp(t[..., 2:4]) * anchors / sides
        scores = _sigmoid(t[..., 4:5]) * _sigmoid(t[..., 5:])
        found.append([x.reshape(n, -1, x.shape[-1]) for x in (centre, size, scores)])
    centre, size, scores = (np.concatenate(column, 1) for column in zip(*found, strict=True))
    return centre, size, scores


def _ssd(outputs: list[Values], constants: dict[str, Any], card: Card) -> tuple[Any, Any, Any]:
    defaults = []
    for i, head in enumerate(_heads(constants)):
        grid, sizes = _pairs({"grid": [head.get("grid")]}, "grid", f"heads[{i}]"), _pairs(head, "boxes", f"heads[{i}]")
        if (grid % 1).any() or grid.prod() * len(sizes) > max(o.size for o in outputs):
            raise DataError(
                f"decode: heads[{i}]: grid must be two whole numbers, of cells that the model's outputs "
                f"{_shapes(outputs)} have room for, not {head.get('grid')!r}."
            )
        ((height, width),) = grid.astype(int)
        step = _number(head, "step", 0.0)
        rows, columns = (step / n for n in card.input[1:]) if step else (1 / height, 1 / width)
        y, x = np.meshgrid((np.arange(height) + 0.5) * rows, (np.arange(width) + 0.5) * columns, indexing="ij")
        centres = np.broadcast_to(np.stack([x, y], -1)[:, :, None], (height, width, len(sizes), 2))
        defaults.append(np.concatenate([centres, np.broadcast_to(sizes, centres.shape)], -1).reshape(-1, 4))
    prior = np.concatenate(defaults)
    last = f"1 + {card.classes}" if card.classes else "1 + classes"
    if (
        [o.shape[1:-1] for o in outputs] != [(len(prior),)] * 2
        or outputs[0].shape[2] != 4
        or outputs[1].shape[2] != (1 + card.classes if card.classes else outputs[1].shape[2])
    ):
        raise DataError(
            f"decode: {len(prior)} default boxes need the outputs (N, {len(prior)}, 4) and "
            f"(N, {len(prior)}, {last}); the model's are {_shapes(outputs)}."
        )
    ((v0, v1),) = _pairs({"variances": [constants.get("variances", [0.1, 0.2])]}, "variances", "ssd")
    t, logits = outputs
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    scores = (odds / odds.sum(-1, keepdims=True))[..., 1:]
    centre, size = t[..., :2] * v0 * prior[:, 2:] + prior[:, :2], _exp(t[..., 2:] * v1) * prior[:, 2:]
    return centre, size, scores


DECODERS: dict[str, Callable[[list[Values], dict[str, Any], Card], tuple[Any, Any, Any]]] = {
    "ssd": _ssd,
    "yolov3": _yolov3,
}


def _heads(constants: dict[str, Any]) -> list[dict[str, Any]]:
    heads = constants.get("heads")
    if not isinstance(heads, list) or not heads or not all(isinstance(h, dict) for h in heads):
        raise DataError(f"decode: heads must be a list of objects, one a head, not {heads!r}.")
    return heads


def _pairs(values: dict[str, Any], key: str, where: str) -> NDArray[np.float64]:
    try:
        pairs = np.array(values.get(key), float)
    except (TypeError, ValueError, OverflowError):
        pairs = np.zeros(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not ((pairs > 0) & (pairs < LARGEST)).all():
        raise DataError(
            f"decode: {where}: {key} must be pairs of numbers above 0 and below {LARGEST:g}, not {values.get(key)!r}."
        )
    return pairs


def _number(values: dict[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise DataError(f"decode: {key} must be a number between -{LARGEST:g} and {LARGEST:g}, not {value!r:.80}.")
    return float(value)


def _shapes(outputs: list[Values]) -> str:
    return " and ".join(f"(N, {', '.join(map(str, o.shape[1:]))})" for o in outputs)


def _sigmoid(x: Values) -> Values:
    found: Values = 1 / (1 + np.exp(-x.clip(-50, 50)))
    return found


def _exp(x: Values) -> Values:
    """No box is e^20 times its anchor, whatever a broken model says."""
    found: Values = np.exp(x.clip(-20, 20))
    return found
