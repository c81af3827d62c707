"""The nodes of a graph: which there are, and what they hold: shapes, parameters, weights and biases,
the ends of clips."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from zaq.ir.ops import CONVS, LINEARS, MAX_POOLS, MOVES, PADS

__all__ = [
    "activations", "add_to_bias", "attribute", "bias_of", "channel_limits", "channel_padding", "clamp_limits",
    "compared", "groups_of", "has_bias",
    "image_sizes", "infinite", "input_node", "is_depthwise", "is_float", "module_of", "moves", "not_its_own",
    "open_sizes", "output_nodes", "pad_value", "renumbers", "set_limits", "set_parameter",
    "shape_of", "source_line", "weight_of",
]  # fmt: skip

aten = torch.ops.aten
# Of the operations that move values, those that may put them under another channel's number.
RENUMBERS = {
    aten.slice.Tensor, aten.select.int, aten.permute.default, aten.transpose.int, aten.expand.default,
    aten.roll.default,
    aten.channel_shuffle.default, aten.pixel_shuffle.default,
}  # fmt: skip


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The shape of one sample at a node, without the batch; None where the node holds no batch of samples."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2 or not value.is_floating_point():
        return None
    return tuple(int(d) for d in value.shape[1:]) if all(isinstance(d, int) for d in value.shape[1:]) else None


def input_node(gm: GraphModule) -> Node:
    """The node of the batch of images, (N, C, H, W): the first input that anything reads."""
    node: Node = next(n for n in gm.graph.nodes if n.op == "placeholder" and n.users)
    return node


def image_sizes(value: Tensor) -> tuple[int, ...]:
    """(C, H, W) of a batch of images; of open sizes the example's (`int` would fix one, for the whole program)."""
    return tuple(d if isinstance(d, int) else int(d.node.hint) for d in value.shape[1:])


def open_sizes(gm: GraphModule) -> tuple[int, ...]:
    """Which of height (2) and width (3) a graph takes in any size (`zaq.ir.sizes`); its shapes are the example's."""
    return tuple(input_node(gm).meta.get("open", ()))


def output_nodes(gm: GraphModule) -> list[Node]:
    """The nodes whose tensors a graph returns, in the order of its outputs."""
    return [n for n in pytree.tree_leaves(next(iter(reversed(gm.graph.nodes))).args) if isinstance(n, Node)]


def is_float(node: Node) -> bool:
    """Whether a node holds floating-point numbers: not a mask, an index, a label, a size or a tuple of tensors."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def compared(gm: GraphModule) -> list[Node]:
    """The tensors by which two networks are told apart where that has to be learned from: each output in floating
    point, and for labels, indices and masks, and what is masked with infinity, the floats they were made from. None
    where an output is a constant.
    """
    live, masked, found = {input_node(gm), *activations(gm)}, infinite(gm), list[Node]()
    for output in output_nodes(gm):
        todo, seen = [output], set[Node]()
        while todo:
            node = todo.pop(0)
            if node in live and node not in seen:
                seen.add(node)
                if is_float(node) and node not in masked:
                    found.append(node)
                else:
                    todo += node.all_input_nodes
    return found


MASKED = -1e4  # what is written for minus infinity by those who fear it: no grid holds it beside a network's values
FILLS = {aten.masked_fill.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar}
SPREADS = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.cat.default, aten.where.self,
    aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.minimum.default,
}  # fmt: skip


def infinite(gm: GraphModule) -> set[Node]:
    """The nodes whose tensors hold, in places, minus infinity or what stands for it: masks, and what was masked."""
    found: set[Node] = set()
    for node in gm.graph.nodes:
        if node.op == "get_attr" and SPREADS.intersection(u.target for u in node.users):
            value = attribute(gm, str(node.target))
            if value.is_floating_point() and bool((value <= MASKED).any()):
                found.add(node)
        numbers = [a for a in node.args if isinstance(a, int | float) and not isinstance(a, bool)]
        filled = node.target in FILLS | PADS and any(n <= MASKED for n in numbers)
        passes = (node.target in SPREADS or moves(node)) and node.target not in MAX_POOLS
        if filled or (passes and found.intersection(node.all_input_nodes)):
            found.add(node)
    return found


def activations(gm: GraphModule) -> Iterator[Node]:
    """The nodes whose value depends on the input, in the order of execution."""
    seen: set[Node] = {input_node(gm)}
    for node in gm.graph.nodes:
        if node.op in ("call_function", "call_module") and seen.intersection(node.all_input_nodes):
            seen.add(node)
            yield node


def source_line(node: Node) -> str:
    """Where in the user's model a node was written, for messages: `net.py:12: x = ...`; else the node's name."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s*(.+)', str(node.meta.get("stack_trace") or ""))
    users = [f for f in frames if "/torch/" not in f[0]]
    return "{}:{}: {}".format(*users[-1]) if users else node.name


def module_of(node: Node) -> str:
    """The module of the user's model in which a node was written, as `layer1.0`; empty for the model itself, and where
    its source knows no modules.
    """
    part = str(next(reversed((node.meta.get("nn_module_stack") or {"": ("", "")}).values()))[0])
    return part.removeprefix("L['self']").lstrip(".")


def attribute(gm: GraphModule, target: str) -> Tensor:
    """The parameter or buffer that a get_attr node names."""
    value: Any = gm
    for part in target.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def set_parameter(gm: GraphModule, target: str, value: Tensor) -> None:
    """Put a parameter under a dotted name, whose owner must exist."""
    owner, _, name = target.rpartition(".")
    setattr(gm.get_submodule(owner), name, nn.Parameter(value))


def weight_of(gm: GraphModule, node: Node) -> Tensor:
    """The weight of a layer, behind the quantizer that may stand before it."""
    return attribute(gm, _parameter(node, 1))


def bias_of(gm: GraphModule, node: Node) -> Tensor:
    """The bias of a layer that has one (`has_bias`)."""
    return attribute(gm, _parameter(node, 2))


def groups_of(node: Node) -> int:
    """The number of groups of a convolution, transposed or not; 1 of a linear layer."""
    groups = node.args[6] if node.target not in LINEARS and len(node.args) > 6 else 1
    assert isinstance(groups, int)
    return groups


def is_depthwise(node: Node) -> bool:
    """Whether a node is a convolution, not transposed, with a group for each channel that it reads."""
    return node.target in CONVS and groups_of(node) == node.all_input_nodes[0].meta["val"].shape[1] > 1


def has_bias(node: Node) -> bool:
    """Whether a layer has a bias that is a parameter."""
    return len(node.args) > 2 and isinstance(node.args[2], Node) and node.args[2].op in ("get_attr", "call_module")


def not_its_own(gm: GraphModule, layer: Node, arguments: tuple[int, ...] = (1, 2)) -> str | None:
    """Why a layer's weight (argument 1) and bias (2) must not be rewritten for its sake; None if nobody else reads
    them.

    Every pass asks this before it changes a parameter: what one layer needs is not what the others that share it need,
    as a pyramid's head that reads several maps. A layer without bias has nothing that could be shared.
    Args: a graph without quantizers, a layer of `WEIGHTED`, and which of its arguments are asked about.
    """
    for argument in (layer.args[i] for i in arguments if i < len(layer.args)):
        if argument is None:
            continue
        if not isinstance(argument, Node) or argument.op != "get_attr":
            return f"the weight or bias of {layer.name} is computed"
        readers = {u for n in gm.graph.nodes if n.op == "get_attr" and n.target == argument.target for u in n.users}
        if len(readers) > 1:
            return f"{argument.target} is shared by {len(readers)} layers"
    return None


@torch.no_grad()
def add_to_bias(gm: GraphModule, node: Node, shift: Tensor) -> None:
    """Add (C,) to the bias of a layer that has one."""
    bias = bias_of(gm, node)
    bias.copy_(bias.cpu().double() + shift.cpu())  # in place: graphs that share the parameter see it too


def channel_limits(node: Node) -> tuple[Tensor, Tensor]:
    """The ends of a clamp node as tensors: scalars, or (C,) where equalization gave every channel its own."""
    if "limits" in node.meta:
        low, high = node.meta["limits"]
        return low, high
    low, high = clamp_limits(node)
    return torch.tensor(low), torch.tensor(high)


def clamp_limits(node: Node) -> tuple[float, float]:
    """The ends a clamp node was given: (0, inf) for ReLU, (0, 6) for ReLU6; infinite where an end is computed.

    Where every channel has its own ends, the widest.
    """
    if "limits" in node.meta:
        return float(node.meta["limits"][0].min()), float(node.meta["limits"][1].max())
    if node.target is aten.relu.default:
        return 0.0, math.inf
    default = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
    given = [*node.args[1:3], *default[len(node.args) - 1 :]]
    low, high = (given[i] if i < len(given) else None for i in (0, 1))
    return (
        float(low) if isinstance(low, int | float) else -math.inf,
        float(high) if isinstance(high, int | float) else math.inf,
    )


def set_limits(gm: GraphModule, node: Node, low: Tensor, high: Tensor) -> None:
    """Give a clamp node ends for each channel, (C,) each; infinite ones are left out."""
    ends: list[Node | None] = []
    for end, values in (("low", low), ("high", high)):
        if not bool(values.isfinite().any()):
            ends.append(None)
            continue
        name = f"{node.name}_{end}"
        gm.register_buffer(name, values.float().view(1, -1, *[1] * (node.meta["val"].dim() - 2)))
        with gm.graph.inserting_before(node):
            ends.append(gm.graph.get_attr(name))
    node.target, node.args = aten.clamp.Tensor, (node.args[0], *ends)
    node.meta["limits"] = (low.float(), high.float())


def channel_padding(node: Node) -> tuple[int, int] | None:
    """How many channels of zeros a padding puts before and behind, as in ResNet's shortcut A."""
    amounts, value = (node.args[1], node.args[-1]) if node.target in PADS and len(node.args) > 1 else (None, None)
    if not isinstance(amounts, list) or len(amounts) != 6 or (isinstance(value, int | float) and value != 0):
        return None
    before, behind = amounts[4:]
    return (before, behind) if isinstance(before, int) and isinstance(behind, int) else None


def pad_value(node: Node) -> float | None:
    """What a padding (of `PADS`) puts around a tensor; None if it repeats or mirrors the tensor's own values."""
    choices = node.args[2:]
    if any(isinstance(c, str) and c != "constant" for c in choices):
        return None
    return next((float(c) for c in choices if isinstance(c, int | float)), 0.0)


def moves(node: Node) -> bool:
    """Whether a node only moves values and makes no new ones but zero: what is quantized before is so after."""
    return node.target in MOVES or (node.target in PADS and not pad_value(node))


def renumbers(node: Node) -> bool:
    """Whether a node may put values under another channel's number; a slice of rows or columns does not."""
    rows = (
        node.target is aten.slice.Tensor and len(node.args) > 1 and isinstance(node.args[1], int) and node.args[1] > 1
    )
    return node.target in RENUMBERS and not rows


def _parameter(node: Node, argument: int) -> str:
    source = node.args[argument]
    while isinstance(source, Node) and source.op == "call_module":
        source = source.args[0]
    assert isinstance(source, Node)
    return str(source.target)
