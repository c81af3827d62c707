"""Fold batch norm into the convolution or linear layer before it.

    BN(Wx + b) = g (Wx + b - m) + beta = (gW) x + g (b - m) + beta,   g = gamma / sqrt(var + eps)

Per-channel weight grids are scaled with their channel, so folding costs no accuracy at any bit width. What batch norm
knew of the folded output, its mean beta and its standard deviation |gamma| on the training data, stays on the node as
`node.meta["bn"]`: it is what data-free methods live on.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.graph import BATCH_NORMS, TRANSPOSED, WEIGHTED, source_line
from zaq.nodes import attribute, groups_of, set_parameter

__all__ = ["BatchNormStats", "fold"]


@dataclass(frozen=True)
class BatchNormStats:
    """The output of a folded layer on the data the model was trained with, each (C,); and batch norm's own input."""

    mean: Tensor
    std: Tensor
    running_mean: Tensor
    running_std: Tensor


def fold(gm: GraphModule) -> tuple[GraphModule, list[str]]:
    """A copy of the graph with every batch norm folded that can be, and a sentence for each that cannot."""
    gm = copy.deepcopy(gm)
    skipped = []
    for node in list(gm.graph.nodes):
        if node.target in BATCH_NORMS:
            reason = _obstacle(gm, node)
            if reason:
                skipped.append(f"{node.name} stays a float operation: {reason} ({source_line(node)})")
            else:
                _fold_one(gm, node)
    gm.graph.eliminate_dead_code()
    _drop_unused(gm)
    gm.recompile()
    return gm, skipped


def _obstacle(gm: GraphModule, bn: Node) -> str | None:
    layer = bn.args[0]
    if not isinstance(layer, Node) or layer.target not in WEIGHTED:
        return "no convolution or linear layer stands before it"
    if len(layer.users) > 1:
        return f"the output of {layer.name} is used without it as well"
    for argument in (layer.args[1], layer.args[2] if len(layer.args) > 2 else None):
        if argument is None:
            continue
        if not isinstance(argument, Node) or argument.op != "get_attr":
            return f"the weight of {layer.name} is computed"
        users = [u for n in gm.graph.nodes if n.op == "get_attr" and n.target == argument.target for u in n.users]
        if len(users) > 1:
            return f"{argument.target} is shared by {len(users)} layers"
    if any(isinstance(a, Node) and a.op != "get_attr" for a in bn.args[1:5]):
        return "its statistics are computed"
    if any(u.target.__name__ != "getitem" or u.args[1] != 0 for u in bn.users if callable(u.target)) and _has_tuple(bn):
        return "its batch statistics are used"
    return None


def _has_tuple(bn: Node) -> bool:
    return bn.target is torch.ops.aten._native_batch_norm_legit_no_training.default


def _fold_one(gm: GraphModule, bn: Node) -> None:
    layer = bn.args[0]
    assert isinstance(layer, Node) and isinstance(layer.args[1], Node)

    def value(argument: object, default: float, like: Tensor) -> Tensor:
        if isinstance(argument, Node):
            return attribute(gm, str(argument.target)).detach().double()
        return torch.full_like(like, default)

    running_mean = value(bn.args[3], 0.0, torch.empty(0))
    running_var = value(bn.args[4], 1.0, running_mean)
    gamma, beta = value(bn.args[1], 1.0, running_mean), value(bn.args[2], 0.0, running_mean)
    eps = bn.args[6] if _has_tuple(bn) else bn.args[7]
    assert isinstance(eps, float)
    running_std = (running_var + eps).sqrt()
    gain = gamma / running_std

    target = str(layer.args[1].target)
    weight = attribute(gm, target)
    bias = value(layer.args[2] if len(layer.args) > 2 else None, 0.0, running_mean)
    set_parameter(gm, target, (weight.detach().double() * _per_output(layer, gain, weight)).to(weight.dtype))
    owner, _, _ = target.rpartition(".")
    bias_target = str(layer.args[2].target) if len(layer.args) > 2 and isinstance(layer.args[2], Node) else ""
    bias_target = bias_target or (f"{owner}.bias" if owner else "bias")
    if not any(n.target == bias_target for n in layer.all_input_nodes) and hasattr(gm.get_submodule(owner), "bias"):
        bias_target = f"{target}_folded_bias"  # somebody else's bias lives under that name
    set_parameter(gm, bias_target, ((bias - running_mean) * gain + beta).to(weight.dtype))
    with gm.graph.inserting_before(layer):
        bias_node = gm.graph.get_attr(bias_target)
    layer.args = (*layer.args[:2], bias_node, *layer.args[3:])

    stats = BatchNormStats(beta.float(), gamma.abs().float(), running_mean.float(), running_std.float())
    layer.meta["bn"] = stats
    for user in list(bn.users) if _has_tuple(bn) else [bn]:
        user.replace_all_uses_with(layer)
        gm.graph.erase_node(user)
    if _has_tuple(bn):
        gm.graph.erase_node(bn)


def _per_output(layer: Node, gain: Tensor, weight: Tensor) -> Tensor:
    """`gain` (one value an output channel) in a shape that multiplies the layer's weight."""
    if layer.target not in TRANSPOSED:
        return gain.view(-1, *[1] * (weight.dim() - 1))
    groups = groups_of(layer)  # weight (C_in, C_out / groups, ...), C_in by groups
    rows = gain.view(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return rows.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))


def _drop_unused(gm: GraphModule) -> None:
    """Remove the parameters and buffers that no node reads any more."""
    used = {str(n.target) for n in gm.graph.nodes if n.op == "get_attr"}
    for name in list(gm.state_dict(keep_vars=True)):
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(gm.get_submodule(owner), leaf)
