"""The operator that stands in for torchvision's compiled one."""

import pytest
import torch

from zaq.sources.operators import KEPT, nms, own_operators


def test_nms_keeps_the_best_of_what_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.3])
    assert nms(boxes, scores, 0.5).tolist() == [1, 2] and nms(boxes, scores, 0.9).tolist() == [1, 0, 2]
    assert nms(boxes[:0], scores[:0], 0.5).shape == (0,)


def test_torchvision_has_it() -> None:
    ops = pytest.importorskip("torchvision.ops")
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    with own_operators():
        found = ops.batched_nms(boxes, torch.tensor([0.5, 0.9, 0.3]), torch.tensor([0, 1, 0]), 0.5)
    assert found.tolist() == [1, 0]


def test_torchvision_is_told_so_only_while_zaq_traces() -> None:
    """Whether its own library loaded is torchvision's to say, also behind a call that failed."""
    extension = pytest.importorskip("torchvision.extension")
    before = extension._has_ops
    with pytest.raises(KeyError), own_operators():
        assert extension._has_ops() and (extension._has_ops is not before or not KEPT)
        raise KeyError
    assert extension._has_ops is before
