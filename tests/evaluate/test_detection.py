"""mAP on boxes whose precision is known, suppression, and the detectors of this checkout from end to end."""

import numpy as np
import pytest

from zaq.evaluate.detection import Precision, mean_precision, suppress


def test_precision_of_known_boxes() -> None:
    """Two objects of class 0 and one of class 4; of each class one is found first, then something that is none."""
    wanted = [np.array([[0, 0, 0, 10, 10], [4, 20, 20, 40, 40]], np.float32), np.array([[0, 5, 5, 15, 15]], np.float32)]
    found = [
        np.array([[0, 0, 0, 10, 10, 0.9], [4, 20, 20, 40, 34, 0.8], [4, 0, 0, 5, 5, 0.1]], np.float32),
        np.array([[0, 30, 30, 35, 35, 0.5], [1, 0, 0, 9, 9, 0.9]], np.float32),
    ]
    map50, whole = mean_precision(found, wanted)
    first = 51 / 101  # half of the objects at precision 1, of COCO's 101 levels of recall
    assert map50 == pytest.approx(100 * (first + 1) / 2)
    assert whole == pytest.approx(
        100 * (first + 0.5) / 2
    )  # an overlap of 0.7 (14 of 20 rows) counts up to 0.7: five of ten levels
    assert mean_precision(wanted_as_found(wanted), wanted) == pytest.approx((100, 100))
    assert mean_precision([np.zeros((0, 6), np.float32)] * 2, wanted) == (0, 0)
    assert str(Precision(map50, whole, 2)) == f"mAP@50 {map50:.2f} %, mAP@50:95 {whole:.2f} % (2 images)"


def wanted_as_found(wanted: list[np.ndarray]) -> list[np.ndarray]:  # type: ignore[type-arg]
    return [np.column_stack([w, np.ones(len(w))]).astype(np.float32) for w in wanted]


def test_the_better_box_of_a_class_suppresses_the_worse() -> None:
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 4]]], np.float32)
    scores = np.array([[[0.8, 0.0], [0.9, 0.7], [0.1, 0.004], [0.5, 0.0]]], np.float32)  # (1, boxes, classes)
    assert sorted(map(tuple, suppress(boxes, scores, 0.45, 0.005).tolist())) == [
        (0, 0, 1),
        (0, 0, 2),
        (0, 0, 3),
        (0, 1, 1),
    ]
