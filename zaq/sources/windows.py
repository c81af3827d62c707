"""Windows of ONNX that torch has no word for: paddings that differ at the two ends of an axis, and the many ways of
ONNX to resize, in operations of torch whose results are the same.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.sources.given import given, shape_of

__all__ = ["average_pool", "conv_transpose", "explicit_pads", "max_pool", "resize"]

WINDOWS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
Axis = tuple[int, int, int, int]  # size, length of the window, stride, step inside the window


def explicit_pads(model: ModelProto) -> None:
    """Write what `auto_pad` and `output_shape` ask for as pads (in place), of a model whose shapes are known."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    for node in graph.node:
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        auto = said.pop("auto_pad", b"NOTSET").decode() if node.op_type in WINDOWS else "NOTSET"
        if node.op_type not in WINDOWS or (auto == "NOTSET" and "output_shape" not in said):
            continue
        kernel = said.get("kernel_shape") or shapes[node.input[1]][2:]
        ones, sizes = [1] * len(kernel), shapes[node.input[0]][2:]
        axes = list(zip(sizes, kernel, said.get("strides", ones), said.get("dilations", ones), strict=True))
        if node.op_type == "ConvTranspose":
            extra = said.get("output_padding", [0] * len(kernel))
            wanted = said.pop("output_shape", [])[-len(kernel) :] or [n * s for n, _, s, _ in axes]
            totals = [
                (n - 1) * s + d * (k - 1) + 1 + x - w for (n, k, s, d), x, w in zip(axes, extra, wanted, strict=True)
            ]
        else:
            totals = [(math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n for n, k, s, d in axes]
        totals = [0 if auto == "VALID" else max(t, 0) for t in totals]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        upper = auto != "SAME_LOWER" if node.op_type != "ConvTranspose" else auto == "SAME_UPPER"
        said["pads"] = [*less, *more] if upper else [*more, *less]
        _say(node, said)


def _say(node: NodeProto, attributes: dict[str, Any]) -> None:
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())


class Crop(nn.Module):
    """The part of each axis of space that begins somewhere and has some length."""

    def __init__(self, starts: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        cuts = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        self.cuts = tuple([slice(None), slice(None), *cuts])

    def forward(self, x: Tensor) -> Tensor:
        return x[self.cuts]


class Pad(nn.Module):
    """Of each axis of space, so much before and behind it."""

    def __init__(self, pairs: Sequence[tuple[int, int]], mode: str = "constant") -> None:
        super().__init__()
        self.amounts, self.mode = [n for pair in reversed(pairs) for n in pair], mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts, self.mode)


class Weighted(nn.Module):
    """Every place times a number of its own."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _axes(node: OnnxNode, graph: OnnxGraph) -> tuple[list[Axis], list[tuple[int, int]], list[int]]:
    """Of each axis of space: what the window does, the pads before and behind, and the number of windows."""
    before, after = shape_of(graph, node.input_values[0])[2:], shape_of(graph, node.output_values[0])[2:]
    kernel = node.attributes["kernel_shape"]
    ones, rank = [1] * len(kernel), len(kernel)
    strides, steps = node.attributes.get("strides", ones), node.attributes.get("dilations", ones)
    pads = node.attributes.get("pads", [0] * 2 * rank)
    return (
        list(zip(before, kernel, strides, steps, strict=True)),
        list(zip(pads[:rank], pads[rank:], strict=True)),
        after,
    )


def _windows(axis: Axis, pad: int, ceil: bool) -> int:
    """How many windows torch's pooling has on an axis that is padded alike at both ends."""
    size, length, stride, step = axis
    room = size + 2 * pad - step * (length - 1) - 1
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + pad else count


def max_pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module | None:
    """Where the pads differ. A maximum does not see what is padded, so only where windows begin, and how many there
    are, counts: a pooling of torch that begins there and has as many, or more, which are cut off. Else the edges are
    repeated: what is repeated lies in the window already."""
    axes, pads, counts = _axes(node, graph)
    if all(b == e for b, e in pads) and not node.attributes.get("ceil_mode"):
        return None
    kind: Any = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[len(axes)]
    kernel, stride, steps = ([a[i] for a in axes] for i in (1, 2, 3))
    begin = [b for b, _ in pads]
    for ceil in (False, True):
        if (cut := _cut(axes, begin, counts, ceil)) is not None:
            return _then(kind(kernel, stride, begin, steps, ceil_mode=ceil), cut)
    if max(steps) > 1:
        raise NotImplementedError("MaxPool with dilations whose pads differ at the two ends of an axis")
    return nn.Sequential(Pad(_reach(axes, begin, counts), "replicate"), kind(kernel, stride))


def average_pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module | None:
    """Where the pads differ: zeros that count are put there first; those that do not are as none at all."""
    axes, pads, counts = _axes(node, graph)
    if all(b == e for b, e in pads) and not node.attributes.get("ceil_mode"):
        return None
    if any(a[3] > 1 for a in axes):
        raise NotImplementedError("AveragePool with dilations")
    kind: Any = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[len(axes)]
    kernel, stride = ([a[i] for a in axes] for i in (1, 2))
    if node.attributes.get("count_include_pad"):
        padded = [(a[0] + b + e, *a[1:]) for a, (b, e) in zip(axes, pads, strict=True)]
        ceil = any(_windows(a, 0, False) < n for a, n in zip(padded, counts, strict=True))
        return nn.Sequential(Pad(pads), kind(kernel, stride, ceil_mode=ceil))
    begin = [b for b, _ in pads]
    for ceil in (False, True):
        if (cut := _cut(axes, begin, counts, ceil)) is not None:
            return _then(kind(kernel, stride, begin, ceil, count_include_pad=False), cut)
    pad, pool = Pad(_reach(axes, begin, counts)), kind(kernel, stride)
    seen = pool(pad(torch.ones(1, 1, *(a[0] for a in axes))))  # the share of each window that is no padding
    return nn.Sequential(pad, pool, Weighted(1 / seen))


def _cut(axes: list[Axis], begin: list[int], counts: list[int], ceil: bool) -> Crop | nn.Identity | None:
    """What takes the windows that are asked for out of torch's; None where torch has too few, or pads no such way."""
    if any(2 * b > step * (length - 1) + 1 for (_, length, _, step), b in zip(axes, begin, strict=True)):
        return None
    found = [_windows(a, b, ceil) for a, b in zip(axes, begin, strict=True)]
    if any(f < n for f, n in zip(found, counts, strict=True)):
        return None
    return nn.Identity() if found == counts else Crop([0] * len(axes), counts)


def _reach(axes: list[Axis], begin: list[int], counts: list[int]) -> list[tuple[int, int]]:
    """The pads with which the last window ends where the axis does."""
    ends = [(n - 1) * s + k - size - b for (size, k, s, _), b, n in zip(axes, begin, counts, strict=True)]
    return [(b, max(e, 0)) for b, e in zip(begin, ends, strict=True)]


def _then(first: nn.Module, second: nn.Module) -> nn.Module:
    return first if isinstance(second, nn.Identity) else nn.Sequential(first, second)


def conv_transpose(node: OnnxNode, graph: OnnxGraph) -> nn.Module | None:
    """Where the pads differ: padded by the lesser, and cut by what is left."""
    stored = graph.initializers.get(node.input_values[1])
    if stored is None:
        return None
    weight = stored.to_torch()
    rank = weight.dim() - 2
    pads = node.attributes.get("pads", [0] * 2 * rank)
    pairs = list(zip(pads[:rank], pads[rank:], strict=True))
    if all(b == e for b, e in pairs):
        return None
    bias = graph.initializers[node.input_values[2]].to_torch() if len(node.input_values) > 2 else None
    groups, ones = node.attributes.get("group", 1), [1] * rank
    least = [min(pair) for pair in pairs]
    kind: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
    layer = kind(
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        node.attributes.get("strides", ones),
        least,
        node.attributes.get("output_padding", [0] * rank),
        groups,
        bias is not None,
        node.attributes.get("dilations", ones),
    )
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    starts = [b - p for (b, _), p in zip(pairs, least, strict=True)]
    return nn.Sequential(layer, Crop(starts, shape_of(graph, node.output_values[0])[2:]))


class Interpolate(nn.Module):
    """To a size, by a mode of torch."""

    def __init__(self, sizes: list[int], mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.sizes, self.mode, self.align_corners = sizes, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.sizes, mode=self.mode, align_corners=self.align_corners)


class Pick(nn.Module):
    """Of each axis of space the places that are named, in that order."""

    def __init__(self, indices: list[NDArray[np.int64]]) -> None:
        super().__init__()
        for i, index in enumerate(indices):
            self.register_buffer(f"index_{i}", torch.from_numpy(index))
        self.count = len(indices)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.count):
            x = x.index_select(i + 2, self.get_buffer(f"index_{i}"))
        return x


def resize(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """By ONNX's coordinates and roundings."""
    before, after = shape_of(graph, node.input_values[0]), shape_of(graph, node.output_values[0])
    said, rank = node.attributes, len(after) - 2
    mode, where = said.get("mode", "nearest"), said.get("coordinate_transformation_mode", "half_pixel")
    rounding = said.get("nearest_mode", "round_prefer_floor")
    names = {("linear", 1): "linear", ("linear", 2): "bilinear", ("cubic", 2): "bicubic"}
    plain = not said.get("antialias") and not said.get("exclude_outside") and said.get("cubic_coeff_a", -0.75) == -0.75
    if before[:2] == after[:2] and plain and where != "tf_crop_and_resize":
        scales = given(node, graph, len(node.input_values) - 1 if node.operation_type == "Upsample" else 2)
        if not scales or said.get("axes"):
            scales = [b / a for a, b in zip(before, after, strict=True)]
        sizes = list(zip(before[2:], after[2:], scales[2:], strict=True))
        if mode == "nearest":
            return _nearest([_places(*size, where, rounding) for size in sizes], before[2:])
        if (mode, rank) in names and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            return Interpolate(after[2:], names[mode, rank], where == "align_corners")
        if mode == "linear" and (mode, rank) in names and where == "asymmetric" and _whole(sizes):
            # i / scale is where corners are aligned once each axis has one more place, which repeats its last.
            longer = [(0, int(b != a)) for a, b, _ in sizes]
            wide = [b + more for (_, b, _), (_, more) in zip(sizes, longer, strict=True)]
            return nn.Sequential(
                Pad(longer, "replicate"), Interpolate(wide, names[mode, rank], True), Crop([0] * rank, after[2:])
            )
    raise NotImplementedError(f"Resize of mode {mode}, {where}, {rounding}")


def _whole(sizes: list[tuple[int, int, float]]) -> bool:
    return all(abs(a * s - b) < 1e-4 for a, b, s in sizes)


def _places(size: int, wanted: int, scale: float, where: str, rounding: str) -> NDArray[np.int64]:
    """The place that each of `wanted` results is read from, as ONNX computes it."""
    i = np.arange(wanted, dtype=np.float64)
    half = (i + 0.5) / scale - 0.5
    x = {
        "half_pixel": half,
        "pytorch_half_pixel": half if wanted > 1 else 0 * i,
        "tf_half_pixel_for_nn": (i + 0.5) / scale,
        "asymmetric": i / scale,
        "align_corners": i * (size - 1) / max(wanted - 1, 1),
        "half_pixel_symmetric": size / 2 * (1 - wanted / (scale * size)) + half,
    }[where]
    x = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[rounding]
    return x.clip(0, size - 1).astype(np.int64)


def _nearest(places: list[NDArray[np.int64]], sizes: list[int]) -> nn.Module:
    """As torch's own nearest neighbours where those are the same."""
    wanted = [len(p) for p in places]
    if len(wanted) == 2:
        rows = torch.arange(sizes[0] * sizes[1], dtype=torch.float32).reshape(1, 1, *sizes)
        theirs = F.interpolate(rows, wanted, mode="nearest")[0, 0].numpy().astype(np.int64)
        if (theirs == places[0][:, None] * sizes[1] + places[1]).all() and sizes[0] * sizes[1] < 2**24:
            return Interpolate(wanted, "nearest", None)
    return Pick(places)
