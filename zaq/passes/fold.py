"""Fold batch norm, and layer scales, into the convolution or linear layer before them.

    BN(Wx + b) = g (Wx + b - m) + beta = (gW) x + g (b - m) + beta,   g = gamma / sqrt(var + eps)
    s (Wx + b) = (sW) x + s b

Per-channel weight grids are scaled with their channel, so folding costs no accuracy at any bit width. What batch norm
knew of the folded output, its mean beta and its standard deviation |gamma| on the training data, stays on the node as
`node.meta["bn"]`: it is what data-free methods live on.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.errors import SourceError
from zaq.ir.nodes import attribute, groups_of, not_its_own, set_parameter, source_line
from zaq.ir.ops import BATCH_NORMS, CONVS, LINEARS, TRANSPOSED, WEIGHTED

__all__ = ["BatchNormStats", "fold"]

aten = torch.ops.aten


@dataclass(frozen=True)
class BatchNormStats:
    """The output of a folded layer on the data the model was trained with, each (C,); and batch norm's own input."""

    mean: Tensor
    std: Tensor
    running_mean: Tensor
    running_std: Tensor


def fold(gm: GraphModule) -> tuple[GraphModule, list[str]]:
    """A copy of the graph with every batch norm and layer scale folded that can be, and a sentence for each norm that
    cannot.
    """
    gm = copy.deepcopy(gm)
    skipped = []
    for node in list(gm.graph.nodes):
        scaled = _scaled_layer(gm, node)
        if scaled is not None:
            _fold_scale(gm, node, scaled)
        if node.target in BATCH_NORMS:
            _require_deviations(gm, node)
            reason = _obstacle(gm, node)
            if reason:
                skipped.append(f"{node.name} stays a float operation: {reason} ({source_line(node)})")
            else:
                _fold_one(gm, node)
    gm.graph.eliminate_dead_code()
    _drop_unused(gm)
    gm.recompile()
    return gm, skipped


def _require_deviations(gm: GraphModule, bn: Node) -> None:
    """Raise SourceError for variances that have no root, or none but zero: what is divided by it is no number."""
    if not isinstance(bn.args[4], Node) or bn.args[4].op != "get_attr":
        return
    variance, eps = attribute(gm, str(bn.args[4].target)).detach().double(), float(bn.args[7])  # type: ignore[arg-type]
    wrong = (~(variance >= 0) | (variance + eps <= 0)).flatten().nonzero().flatten().tolist()
    if wrong:
        raise SourceError(
            f"{bn.args[4].target}: the variance of channel {wrong[0]} is {variance.flatten()[wrong[0]]:.4g}, "
            f"with an eps of {eps:g} ({len(wrong)} of {variance.numel()} channels are so): batch norm divides by its "
            "root. The model is broken, or was never trained."
        )


def _obstacle(gm: GraphModule, bn: Node) -> str | None:
    layer = bn.args[0]
    if not isinstance(layer, Node) or layer.target not in WEIGHTED:
        return "no convolution or linear layer stands before it"
    if len(layer.users) > 1:
        return f"the output of {layer.name} is used without it as well"
    if any(isinstance(a, Node) and a.op != "get_attr" for a in bn.args[1:5]):
        return "its statistics are computed"
    return not_its_own(gm, layer)


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
    eps = bn.args[7]
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
    bn.replace_all_uses_with(layer)
    gm.graph.erase_node(bn)


def _scaled_layer(gm: GraphModule, node: Node) -> Node | None:
    """The layer whose channels a node multiplies by a constant each (a layer scale), through what only moves its
    result.
    """
    operands = sorted(node.all_input_nodes, key=lambda n: n.op == "get_attr") if node.target is aten.mul.Tensor else []
    if [n.op == "get_attr" for n in operands] != [False, True]:
        return None
    source, gain = operands
    shape = attribute(gm, str(gain.target)).shape
    wide = [i for i, n in enumerate(shape) if n > 1]
    if len(wide) != 1:
        return None
    axis = wide[0] - len(shape)  # of the channels, from behind
    while source.target in (aten.reshape.default, aten.permute.default, aten.transpose.int) and len(source.users) == 1:
        before, dims = source.args[0], source.meta["val"].dim()
        assert isinstance(before, Node)
        if source.target is aten.reshape.default:
            if axis != -1 or before.meta["val"].shape[-1] != source.meta["val"].shape[-1]:
                return None
        else:
            places = torch.empty(*range(1, dims + 1), device="meta")  # dimension i has i + 1 places
            axis = source.target(places, *source.args[1:]).shape[axis] - 1 - dims
        source = before
    alone = source.target in CONVS | LINEARS and len(source.users) == 1 and not not_its_own(gm, source)
    weight = source.args[1] if alone else None
    if not isinstance(weight, Node):
        return None
    channels = -1 if source.target in LINEARS else 1 - source.meta["val"].dim()
    return source if axis == channels and shape[wide[0]] == len(attribute(gm, str(weight.target))) else None


def _fold_scale(gm: GraphModule, node: Node, layer: Node) -> None:
    """Scale a layer's weight and bias, and drop the node that did."""
    source, gamma = sorted(node.all_input_nodes, key=lambda n: n.op == "get_attr")
    gain = attribute(gm, str(gamma.target)).detach().double().flatten()
    for argument in layer.args[1:3]:
        if isinstance(argument, Node):
            value = attribute(gm, str(argument.target))
            set_parameter(
                gm, str(argument.target), (value.detach().double() * _per_output(layer, gain, value)).to(value.dtype)
            )
    node.replace_all_uses_with(source)
    gm.graph.erase_node(node)
    if "bn" in layer.meta:
        s, stats = gain.float(), layer.meta["bn"]
        layer.meta["bn"] = replace(stats, mean=stats.mean * s, std=stats.std * s.abs())


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
