"""Which channels can carry a scale through a folded graph, and how one is put there.

What a positive scale per channel passes through unchanged (ReLU, additions, poolings, ...) can carry one: dividing what
writes a channel by s and multiplying what reads it by s leaves the function as it is. Channels that are added or
multiplied with one another share a scale: they are found by union-find over (tensor, channel), so that residual,
depthwise, grouped and concatenated structures need no rules of their own. A clip moves with its channel: min(x, 6)
becomes min(x, 6 / s_i). A product with a constant behind an operation that lets no scale through can give each channel
one anew, as a convolution can.

Where a tensor leaves the network, enters it, or goes through an operation that is not homogeneous, its scale is 1.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.ir.nodes import (
    activations,
    attribute,
    channel_limits,
    channel_padding,
    groups_of,
    input_node,
    not_its_own,
    output_nodes,
    renumbers,
    set_limits,
    set_parameter,
    shape_of,
)
from zaq.ir.ops import CLAMPS, CONVS, LINEARS, MOVES, PADS, POOLS
from zaq.passes.fold import Affine, affine

__all__ = [
    "Channels", "Region", "carriers", "columns", "layers", "regions", "rescale", "rows", "scaled", "takes_any_scale",
]  # fmt: skip

aten = torch.ops.aten
HOMOGENEOUS = {aten.relu.default, aten.leaky_relu.default, aten.prelu.default, aten.clone.default, aten.alias.default}
REARRANGES = {aten.flatten.using_ints, aten.reshape.default}


@dataclass
class Channels:
    """Union-find over the channels of all tensors; number 0 is the channel whose scale is 1."""

    parents: list[int] = field(default_factory=lambda: [0])
    of: dict[Node, list[int]] = field(default_factory=dict)

    def new(self, node: Node, count: int) -> None:
        self.of[node] = list(range(len(self.parents), len(self.parents) + count))
        self.parents += self.of[node]

    def root(self, i: int) -> int:
        while self.parents[i] != i:
            self.parents[i] = self.parents[self.parents[i]]
            i = self.parents[i]
        return i

    def join(self, a: list[int], b: list[int]) -> None:
        for i, j in zip(a, b, strict=True):
            i, j = self.root(i), self.root(j)
            self.parents[max(i, j)] = min(i, j)

    def fix(self, node: Node) -> None:
        self.join(self.of[node], [0] * len(self.of[node]))

    def roots(self, node: Node) -> Tensor:
        return torch.tensor([self.root(i) for i in self.of[node]])


@dataclass(frozen=True)
class Region:
    """Channels that can carry a scale: the layers that write them, and those that read them."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int


def carriers(gm: GraphModule) -> tuple[Channels, list[str]]:
    """The channels of a folded graph, joined where they must share a scale; and a sentence for each operation that lets
    none through.
    """
    channels, reasons = Channels(), []
    for node in [input_node(gm), *activations(gm)]:
        shape = shape_of(node)
        if shape is None or len(shape) not in (1, 3):
            for source in node.all_input_nodes:
                if source in channels.of:
                    channels.fix(source)
            continue
        channels.new(node, shape[0])
        sources = [n for n in node.all_input_nodes if n in channels.of]
        reason = _join(gm, channels, node, sources)
        if reason:
            reasons.append(f"{node.name} carries no scale: {reason}")
            for fixed in (node, *sources):
                channels.fix(fixed)
    for node in (input_node(gm), *output_nodes(gm)):
        if node in channels.of:
            channels.fix(node)
    return channels, reasons


def _join(gm: GraphModule, channels: Channels, node: Node, sources: list[Node]) -> str | None:
    """Join a node's channels with those of what it reads; or say why they must not carry a scale."""
    if not sources:
        return "what makes it carries none" if node.op != "placeholder" else None
    first, count = channels.of[sources[0]], len(channels.of[node])
    if node.target in CONVS | LINEARS:
        over_a_map = node.target in LINEARS and len(shape_of(node) or ()) > 1
        return not_its_own(gm, node) or ("a linear layer over a map" if over_a_map else None)
    if node.target in CLAMPS | HOMOGENEOUS | POOLS and len(first) == count:
        channels.join(channels.of[node], first)
        return None
    if node.target is aten.add.Tensor and len(sources) == 2 and all(len(channels.of[s]) == count for s in sources):
        for source in sources:
            channels.join(channels.of[node], channels.of[source])
        return None
    if takes_any_scale(node):
        channels.fix(node)
        return None
    if (found := scaled(gm, node)) is not None:
        if node.target is aten.add.Tensor or any(channels.root(c) for c in channels.of[found.source]):
            channels.join(channels.of[node], channels.of[found.source])
        return None
    if node.target is aten.mul.Tensor and len(sources) == 2:
        return _join_product(channels, node, sources)
    if node.target is aten.cat.default and node.args[1:] == (1,):
        channels.join(channels.of[node], [c for s in node.all_input_nodes for c in channels.of[s]])
        return None
    padding = channel_padding(node)
    if padding:
        own = channels.of[node]  # channels of zeros may carry any scale
        channels.join(own, [*own[: padding[0]], *first, *own[count - padding[1] :]])
        return None
    if node.target in MOVES | PADS and len(first) == count and node.target not in REARRANGES:
        if node.target in PADS and len(node.args) > 2 and isinstance(node.args[-1], int | float) and node.args[-1] != 0:
            return "it pads with a constant"
        if renumbers(node):
            return f"{node.target} may move channels"
        channels.join(channels.of[node], first)
        return None
    if node.target in REARRANGES and len(shape_of(node) or ()) == 1 and count == math.prod(shape_of(sources[0]) or ()):
        each = count // len(first)
        channels.join(channels.of[node], [c for c in first for _ in range(each)])
        return None
    return f"{node.target} is not homogeneous, or moves channels"


def _join_product(channels: Channels, node: Node, sources: list[Node]) -> str | None:
    """x times a gate: the product has x's scale if the gate's is 1, as a sigmoid's is."""
    for x, gate in (sources, sources[::-1]):
        if not any(channels.root(c) for c in channels.of[gate]) and len(channels.of[x]) == len(channels.of[node]):
            channels.join(channels.of[node], channels.of[x])
            return None
    return "two tensors with scales of their own are multiplied"


def takes_any_scale(node: Node) -> bool:
    """Whether a node gives the same whatever its channels are multiplied by: an instance norm, but for its eps."""
    return node.target is aten.instance_norm.default and not any(isinstance(a, Node) for a in node.args[1:])


def scaled(gm: GraphModule, node: Node) -> Affine | None:
    """A product or a sum with a constant that is one number, or one for each channel of (N, C, ...)."""
    if node.target not in (aten.mul.Tensor, aten.add.Tensor):
        return None
    found = affine(gm, node)
    if found is None or shape_of(found.source) != shape_of(node):
        return None
    channel = 1 - node.meta["val"].dim()  # from behind
    wide = [i - found.constant.dim() for i, size in enumerate(found.constant.shape) if size > 1]
    return found if wide in ([], [channel]) else None


def layers(gm: GraphModule, channels: Channels) -> list[Node]:
    """The layers between channels whose weight and bias are their own, in the order of execution."""
    return [
        n
        for n in activations(gm)
        if n.target in CONVS | LINEARS
        and n in channels.of
        and n.all_input_nodes[0] in channels.of
        and not not_its_own(gm, n)
    ]


def rescale(gm: GraphModule, channels: Channels, scale: Tensor) -> None:
    """Divide every channel by its scale (one for each number of `channels`, that of number 0 being 1), in place.

    Batch-norm statistics (`node.meta["bn"]`) follow their channels.
    """
    for node in layers(gm, channels):
        _rescale_layer(gm, node, scale[channels.roots(node.all_input_nodes[0])], scale[channels.roots(node)])
    for node in list(activations(gm)):
        if node.target in CLAMPS and node in channels.of and bool((scale[channels.roots(node)] != 1).any()):
            _rescale_clamp(gm, node, scale[channels.roots(node)])
        elif node in channels.of and (found := scaled(gm, node)) is not None:
            _rescale_constant(gm, node, found, scale[channels.roots(found.source)], scale[channels.roots(node)])
    gm.recompile()


def regions(gm: GraphModule) -> list[Region]:
    """What `equalize` makes equal in a folded graph, in the order of execution."""
    channels, _ = carriers(gm)
    ends: dict[int, tuple[list[str], list[str]]] = {}
    for node in layers(gm, channels):
        for side, roots in enumerate((channels.roots(node), channels.roots(node.all_input_nodes[0]))):
            for root in set(roots.tolist()) - {0}:
                ends.setdefault(root, ([], []))[side].append(node.name)
    found = Counter((tuple(w), tuple(r)) for w, r in ends.values() if w and r)
    return [Region(writers, readers, count) for (writers, readers), count in found.items()]


def columns(node: Node, weight: Tensor) -> Tensor:
    """Which input channel each (row, column) of a layer's weight reads, shaped (O, I / groups, 1, ...)."""
    groups = groups_of(node)
    rows, columns = weight.shape[:2]
    first = torch.arange(rows) // (rows // groups) * columns
    return (first[:, None] + torch.arange(columns)).view(rows, columns, *[1] * (weight.dim() - 2))


def rows(values: Tensor, weight: Tensor) -> Tensor:
    """A value for each row of a weight, in a shape that broadcasts."""
    return values.view(-1, *[1] * (weight.dim() - 1))


def _rescale_layer(gm: GraphModule, node: Node, s_in: Tensor, s_out: Tensor) -> None:
    name = _name(node.args[1])
    weight = attribute(gm, name)
    new = weight.detach().double() * s_in[columns(node, weight)] / rows(s_out, weight)
    set_parameter(gm, name, new.to(weight.dtype))
    if len(node.args) > 2 and isinstance(node.args[2], Node):
        bias = attribute(gm, _name(node.args[2]))
        set_parameter(gm, _name(node.args[2]), (bias.detach().double() / s_out).to(bias.dtype))
    if "bn" in node.meta:
        s, stats = s_out.float(), node.meta["bn"]
        node.meta["bn"] = replace(stats, mean=stats.mean / s, std=stats.std / s)


def _rescale_clamp(gm: GraphModule, node: Node, s: Tensor) -> None:
    """min(x, 6) of channel i becomes min(x, 6 / s_i); a ReLU stays what it is."""
    low, high = (v.double() / s for v in channel_limits(node))
    if node.target is not aten.relu.default:
        set_limits(gm, node, low, high)


def _rescale_constant(gm: GraphModule, node: Node, found: Affine, s_in: Tensor, s_out: Tensor) -> None:
    """A product takes the difference between the scales before and behind it; a summand its channels' scale."""
    factor = s_in / s_out if node.target is aten.mul.Tensor else 1 / s_out
    if bool((factor == 1).all()):
        return
    name = f"{node.name}_scaled"
    new = (found.constant.flatten() * factor).view(1, -1, *[1] * (node.meta["val"].dim() - 2))
    gm.register_buffer(name, new.to(node.meta["val"].dtype))
    with gm.graph.inserting_before(node):
        constant = gm.graph.get_attr(name)
    constant.meta["val"] = attribute(gm, name)
    node.args = (found.source, constant)


def _name(argument: object) -> str:
    assert isinstance(argument, Node)
    return str(argument.target)
