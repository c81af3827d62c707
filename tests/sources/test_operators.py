"""The operator that stands in for torchvision's compiled one."""

import pytest
import torch

from zaq.sources.operators import nms


def test_nms_keeps_the_best_of_what_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.3])
    assert nms(boxes, scores, 0.5).tolist() == [1, 2] and nms(boxes, scores, 0.9).tolist() == [1, 0, 2]
    assert nms(boxes[:0], scores[:0], 0.5).shape == (0,)


def test_torchvision_has_it() -> None:
    ops = pytest.importorskip("torchvision.ops")
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    found = ops.batched_nms(boxes, torch.tensor([0.5, 0.9, 0.3]), torch.tensor([0, 1, 0]), 0.5)
    assert found.tolist() == [1, 0]
