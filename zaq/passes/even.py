"""Channels of alike ranges where that costs nothing: in front of depthwise convolutions and instance norms.

A tensor has one scale for all of its channels, and a channel that reaches a thirtieth of what another does has five
bits fewer. Equalization (`equalize`) weighs that against the weights that read the channel, which it costs some of
theirs. A depthwise convolution reads each channel with weights that have a scale of their own, as those have that write
it: so there the ranges of the activations alone can decide. An instance norm takes every scale away again.
"""

import copy

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.ir.nodes import activations, channel_limits, groups_of
from zaq.ir.ops import CLAMPS, CONVS
from zaq.ir.taps import with_taps
from zaq.passes.channels import Channels, carriers, layers, rescale, scaled, takes_any_scale

__all__ = ["even", "free_to_scale"]

LEAST = 1 / 32  # of the largest range: what seems to be still on the images may not be so on others


@torch.no_grad()
def even(gm: GraphModule, images: Tensor) -> tuple[GraphModule, int]:
    """A copy of a folded graph, which computes the same, and of how many tensors the channels have alike ranges now.

    Args: images (N, C, H, W) that the ranges are read off, as the model reads them.
    """
    gm = copy.deepcopy(gm)
    channels, _ = carriers(gm)
    free = _free(gm, channels)
    read = {n.all_input_nodes[0] for n in channels.of if free_to_scale(n)}
    tensors = [n for n in activations(gm) if n in read and set(channels.roots(n).tolist()) <= free]
    if not tensors:
        return gm, 0
    values = with_taps(gm, [n.name for n in tensors])(images)[1]
    scale = torch.zeros(len(channels.parents), dtype=torch.double)
    for node, value in zip(tensors, values, strict=True):
        ranges = value.abs().transpose(0, 1).flatten(1).amax(1).double()
        part = (ranges / ranges.max().clamp(min=1e-30)).clamp(min=LEAST)
        scale.scatter_reduce_(0, channels.roots(node), part, "amax")
    rescale(gm, channels, torch.where(scale > 0, scale, 1.0))
    return gm, len(tensors)


def _free(gm: GraphModule, channels: Channels) -> set[int]:
    """The channels, by number, that nothing reads but what is free to scale, that something writes which takes a scale,
    and that no clamp limits but ReLU: another one would need limits for each channel.
    """
    written, taken = set[int](), {0}
    for node in layers(gm, channels):
        written |= set(channels.roots(node).tolist())
        if not _is_depthwise(node):
            taken |= set(channels.roots(node.all_input_nodes[0]).tolist())
    for node in activations(gm):
        if node not in channels.of:
            continue
        roots = set(channels.roots(node).tolist())
        if node.target is torch.ops.aten.mul.Tensor and scaled(gm, node) is not None:
            written |= roots
        elif node.target in CLAMPS and any(bool(((v != 0) & v.isfinite()).any()) for v in channel_limits(node)):
            taken |= roots
    return written - taken


def free_to_scale(node: Node) -> bool:
    """Whether a node reads each channel by itself, so that any scale will do: a depthwise convolution, whose weights
    take it, or an instance norm.
    """
    return _is_depthwise(node) or takes_any_scale(node)


def _is_depthwise(node: Node) -> bool:
    return node.target in CONVS and groups_of(node) == node.all_input_nodes[0].meta["val"].shape[1]
