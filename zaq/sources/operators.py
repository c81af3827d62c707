"""torchvision beside a torch it was not compiled for: PyPI's build imports beside its own torch alone, not beside a CPU
one, and timm and onnx2torch import it.

What its import asks for is defined here, in Python: `nms` as torchvision documents it. Everything else of torchvision
that zaq meets (networks, transforms) is Python anyway. Where torchvision's own library loads, nothing is done.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["define_missing_operators", "own_operators"]

KEPT: list[torch.library.Library] = []  # operators live as long as the library that defined them


def define_missing_operators() -> None:
    """Make `import torchvision` work where torchvision is installed without a library that loads."""
    found = importlib.util.find_spec("torchvision")
    if KEPT or found is None or not found.origin:
        return
    try:
        torch.ops.load_library(next(Path(found.origin).parent.glob("_C*.*")))
        return
    except (OSError, StopIteration):
        pass
    library = torch.library.Library("torchvision", "DEF")
    KEPT.append(library)
    for name in ("nms", "qnms"):  # the second, for quantized tensors, is only asked whether it is there
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl(name, nms, "CPU")


@contextmanager
def own_operators() -> Iterator[None]:
    """Inside, torchvision.ops calls operators that were defined here; outside it asks whether its own library loaded,
    as it does for whoever else uses it in this process.
    """
    if not KEPT:
        yield
        return
    from torchvision import extension

    theirs = extension._has_ops
    extension._has_ops = lambda: True
    try:
        yield
    finally:
        extension._has_ops = theirs


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes (N, 4) as x1, y1, x2, y2 that overlap none with a higher score by more, best first."""
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = torch.maximum(dets[best, :2], dets[left, :2]), torch.minimum(dets[best, 2:], dets[left, 2:])
        overlap = (high - low).clamp(min=0).prod(1)
        left = left[overlap <= iou_threshold * (area[best] + area[left] - overlap)]
    return torch.stack(kept) if kept else scores.new_empty(0, dtype=torch.long)
