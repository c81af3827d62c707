"""Decoding against boxes worked out by hand, against torchvision's, and constants that do not fit the heads."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zaq.config.card import Card
from zaq.errors import DataError
from zaq.evaluate import decode, read_decode
from zaq.evaluate.boxes import thresholds
from zaq.sources.operators import define_missing_operators

YOLO = {"kind": "yolov3", "heads": [{"anchors": [[8, 16], [4, 4]], "scale_x_y": 1.1}, {"anchors": [[2, 2]]}]}
SSD = {
    "kind": "ssd",
    "variances": [0.1, 0.2],
    "heads": [{"grid": [1, 2], "boxes": [[0.5, 0.25]]}, {"grid": [1, 1], "boxes": [[1, 1]]}],
}


def card(constants: dict[str, Any] | None, classes: int | None = 3) -> Card:
    return Card(input=(3, 16, 32), classes=classes, decode=constants)


def test_yolo_by_hand() -> None:
    """One cell of the first head says something: anchor 1, row 1, column 2 of a grid of 2 x 4."""
    heads = [np.full((1, 2 * 8, 2, 4), -20, np.float32), np.full((1, 8, 4, 8), -20, np.float32)]
    tx, ty, tw, th = 0.3, -0.2, math.log(2), math.log(0.5)
    heads[0][0, 8:, 1, 2] = [tx, ty, tw, th, 20, -20, 20, 0]
    boxes, scores = decode(heads, card(YOLO))
    assert boxes.shape == (1, 2 * 8 + 32, 4) and scores.shape == (1, 48, 3)
    at = (1 * 4 + 2) * 2 + 1
    assert scores[0, at] == pytest.approx([0, 1, 0.5], abs=1e-6) and np.delete(scores[0], at, 0).max() < 1e-6
    cx, cy = (1 / (1 + math.exp(-tx)) * 1.1 - 0.05 + 2) / 4, (1 / (1 + math.exp(-ty)) * 1.1 - 0.05 + 1) / 2
    w, h = 4 * 2 / 32, 4 * 0.5 / 16
    assert boxes[0, at] == pytest.approx([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], abs=1e-5)


def test_ssd_by_hand() -> None:
    t = np.zeros((1, 3, 4), np.float32)
    t[0, 1] = [1, -1, 5 * math.log(2), 0]
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, 1] = [0, 0, math.log(6), 0]
    boxes, scores = decode([t, logits], card(SSD))
    cx, cy, w, h = 0.1 * 0.5 + 0.75, -0.1 * 0.25 + 0.5, 1.0, 0.25  # the second cell
    assert boxes[0, 1] == pytest.approx([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], abs=1e-6)
    assert boxes[0, 2] == pytest.approx([0, 0, 1, 1]) and scores[0, 1] == pytest.approx([1 / 9, 6 / 9, 1 / 9], abs=1e-6)


def test_ssd_as_torchvision_decodes_it() -> None:
    define_missing_operators()
    pytest.importorskip("torchvision")
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    steps = [8, 16]
    priors = DefaultBoxGenerator([[2], [2, 3]], min_ratio=0.2, max_ratio=0.9, steps=steps)
    maps = [torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 1, 2)]
    (defaults,) = priors(ImageList(torch.zeros(1, 3, 16, 32), [(16, 32)]), maps)
    sizes = [pairs.clamp(0, 1).tolist() for pairs in priors._wh_pairs]
    heads = [
        {"grid": list(m.shape[2:]), "boxes": s, "step": step} for m, s, step in zip(maps, sizes, steps, strict=True)
    ]
    t = torch.randn(1, len(defaults), 4)
    boxes, _ = decode([t.numpy(), np.zeros((1, len(defaults), 4), np.float32)], card({"kind": "ssd", "heads": heads}))
    expected = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(t[0], defaults) / torch.tensor([32, 16, 32, 16])
    np.testing.assert_allclose(boxes[0], expected.numpy(), atol=1e-5)


def heads(*channels: int) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return [np.zeros((1, c, 2, 4), np.float32) for c in channels]


@pytest.mark.parametrize(("constants", "classes", "outputs", "message"), [
    (None, 3, heads(16, 8), "name their file with --decode"),
    ({"kind": "yolov4"}, 3, heads(16, 8), "Did you mean 'yolov3'"),
    ({**YOLO, "anchor": []}, 3, heads(16, 8), "unknown key 'anchor'"),
    (YOLO, 3, heads(16), r"2 heads for a model of \(N, 16, 2, 4\)"),
    (YOLO, 3, heads(16, 9), r"heads\[1\]: the model's output 1 is \(N, 9, 2, 4\); \(N, 8, H, W\) was expected"),
    (YOLO, None, heads(17, 8), r"heads\[0\]: the model's output 0 is \(N, 17, 2, 4\)"),
    (YOLO, 3, [np.zeros((1, 16), np.float32)] * 2, r"output 0 is \(N, 16\)"),
    ({"kind": "yolov3", "heads": [{"anchors": [1, 2]}]}, 3, heads(8),
    r"heads\[0\]: anchors must be pairs of numbers above 0"),
    ({"kind": "yolov3", "heads": [{"anchors": [[1, 2]], "scale_x_y": "a"}]}, 3, heads(8), "scale_x_y must be a number"),
    ({"kind": "yolov3", "heads": 3}, 3, heads(8), "heads must be a list of objects"),
    (SSD, 3, [np.zeros((1, 4, 4), np.float32)] * 2, r"3 default boxes need the outputs \(N, 3, 4\) and \(N, 3, 1 "),
    (SSD, 2, [np.zeros((1, 3, 4), np.float32)] * 2, r"\(N, 3, 1 \+ 2\)"),
    ({"kind": "ssd", "heads": [{"boxes": [[1, 1]]}]}, 3, heads(8), r"heads\[0\]: grid must be pairs"),
    ({"kind": "ssd", "heads": [{"grid": [0.5, 1], "boxes": [[1, 1]]}]}, 3, heads(8), "grid must be two whole numbers"),
    ({"kind": "ssd", "heads": [{"grid": [9999, 9999], "boxes": [[1, 1]]}]}, 3, heads(8), "have room for, not .9999"),
])  # fmt: skip
def test_constants_that_do_not_fit(constants: Any, classes: int | None, outputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(outputs, card(constants, classes))


def test_a_decode_file_is_constants_or_a_card(tmp_path: Path) -> None:
    path = tmp_path / "decode.json"
    for values in (YOLO, {"classes": 3, "decode": YOLO}):
        path.write_text(json.dumps(values))
        assert read_decode(path) == YOLO
    for words, message in (
        ("[1]", "an object with the key kind"),
        ("{", "not readable as JSON"),
        ("{}", "an object with the key kind"),
    ):
        path.write_text(words)
        with pytest.raises(DataError, match=rf"--decode .*{message}"):
            read_decode(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_decode(tmp_path / "none.json")
    assert thresholds(card(YOLO)) == (0.005, 0.45) and thresholds(card({**YOLO, "score": 0.3, "nms": 0.5})) == (
        0.3,
        0.5,
    )
