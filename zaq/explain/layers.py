"""The same layer in a float network and in its student, and the node where its units can be seen."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.errors import RunError, UserError, unknown
from zaq.ir.ops import CLAMPS, MERGES, WEIGHTED
from zaq.quant import op as op  # the operator that a checkpoint's graph holds
from zaq.quant.asked import all_layers, layer_name

__all__ = ["Pair", "layer_pair"]

aten = torch.ops.aten
ROUNDING = torch.ops.zaq.fake_quantize.default
# What belongs to a layer: a unit is what the next layer reads of it.
OWN = CLAMPS | MERGES | {
    aten.hardswish.default, aten.silu.default, aten.gelu.default,
    aten.sigmoid.default, aten.hardsigmoid.default, aten.leaky_relu.default, aten.elu.default, aten.add.Scalar,
    aten.mul.Scalar, aten.minimum.default, aten.maximum.default, aten.alias.default, aten.clone.default,
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A layer, by the name of its module, and the nodes of its units in both graphs."""

    name: str
    teacher: str
    student: str
    units: int


def layer_pair(teacher: GraphModule, student: GraphModule, name: str | None = None) -> Pair:
    """The layer of that name, else the last one whose units have a place in the image.

    teacher: folded. student: as a checkpoint has it. Both compute the same layers in the same order.
    Raises UserError for a name that no such layer has, RunError where the two do not fit.
    """
    own = all_layers(teacher)
    theirs = [n for n in student.graph.nodes if n.target in WEIGHTED]
    if len(own) != len(theirs):
        raise RunError(
            f"the float network has {len(own)} layers and the student {len(theirs)}; which is which cannot be told."
        )
    pairs = {layer_name(a): (a, b) for a, b in zip(own, theirs, strict=True) if _units(a)}
    if not pairs:
        raise UserError("no layer of this network has units with a place in the image (N, C, H, W), H and W above 1.")
    if name is not None and name not in pairs:
        raise UserError("--layer: " + unknown("layer", name, pairs))
    chosen = name or list(pairs)[-1]
    a, b = pairs[chosen]
    return Pair(chosen, _seen(a).name, _seen(b).name, _units(a))


def _units(node: Node) -> int:
    """How many units a layer has, if each has several places in the image; else 0."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() != 4 or not all(int(d) > 1 for d in value.shape[2:]):
        return 0
    return int(value.shape[1])


def _seen(layer: Node) -> Node:
    """Where what a layer writes is whole: behind what belongs to it, before more than one reads it, and before it is
    rounded."""
    node = found = layer
    while len(node.users) == 1:
        (reader,) = node.users
        if reader.target not in OWN | {ROUNDING} or not _keeps(node, reader):
            break
        node = reader
        found = found if node.target is ROUNDING else node
    return found


def _keeps(node: Node, reader: Node) -> bool:
    """Whether a reader has the same units: not so a concatenation, or a gate of one number a channel."""
    before, behind = node.meta.get("val"), reader.meta.get("val")
    return isinstance(before, Tensor) and isinstance(behind, Tensor) and before.shape[1:] == behind.shape[1:]
