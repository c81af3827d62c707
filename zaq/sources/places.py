"""Operations of ONNX that move values to other places or repeat them, and that onnx2torch reads in no way that
torch.export sees through.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.sources.given import given

__all__ = ["PLACES"]


class Tile(nn.Module):
    def __init__(self, repeats: list[int]) -> None:
        super().__init__()
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        for axis, times in enumerate(self.repeats):  # as copies side by side, which integers are as well
            x = torch.cat([x] * times, axis) if times > 1 else x
        return x


class CumSum(nn.Module):
    def __init__(self, axis: int, exclusive: bool, reverse: bool) -> None:
        super().__init__()
        self.axis, self.exclusive, self.reverse = axis, exclusive, reverse

    def forward(self, x: Tensor) -> Tensor:
        total = x.cumsum(self.axis)
        if self.reverse:  # what is still to come, and the value itself
            total = x.sum(self.axis, keepdim=True) - total + x
        return total - x if self.exclusive else total


class GridSample(nn.Module):
    """At the places of a grid, which may be one for every image."""

    grid: Tensor | None

    def __init__(self, mode: str, padding: str, align_corners: bool, grid: Tensor | None) -> None:
        super().__init__()
        self.mode, self.padding, self.align_corners = mode, padding, align_corners
        self.register_buffer("grid", grid)

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        places = self.grid if grid is None else grid
        assert places is not None
        if places.shape[0] == 1:
            places = places.expand(x.shape[0], *places.shape[1:])
        return F.grid_sample(x, places, self.mode, self.padding, self.align_corners)


class ToDepth(nn.Module):
    """Blocks of places into channels, the places before the channels."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        b = self.block
        return x.reshape(-1, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(-1, c * b * b, h // b, w // b)


class FromDepth(nn.Module):
    """Channels into blocks of places, the places before the channels."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        b = self.block
        return x.reshape(-1, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(-1, c // b**2, h * b, w * b)


class Largest(nn.Module):
    """Of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(list(range(2, x.dim())), keepdim=True)


def _tile(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Tile(given(node, graph, 1))


def _cumsum(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axis, said = given(node, graph, 1), node.attributes
    return CumSum(axis[0] if isinstance(axis, list) else axis, bool(said.get("exclusive")), bool(said.get("reverse")))


def _grid_sample(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    said, stored = node.attributes, graph.initializers.get(node.input_values[1])
    mode = said.get("mode", "bilinear")
    return GridSample(
        {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode),
        said.get("padding_mode", "zeros"),
        bool(said.get("align_corners")),
        stored.to_torch() if stored is not None else None,
    )


def _depth_to_space(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    block = node.attributes["blocksize"]
    return nn.PixelShuffle(block) if node.attributes.get("mode", "DCR") == "CRD" else FromDepth(block)


def _space_to_depth(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return ToDepth(node.attributes["blocksize"])


def _global_max_pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Largest()


PLACES: dict[str, Callable[[OnnxNode, OnnxGraph], Any]] = {
    "Tile": _tile, "CumSum": _cumsum, "GridSample": _grid_sample, "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth, "GlobalMaxPool": _global_max_pool,
}  # fmt: skip
