"""Fold batch norm, and constants that scale or shift channels, into the convolution or linear layer before them.

    BN(Wx + b) = g (Wx + b - m) + beta = (gW) x + g (b - m) + beta,   g = gamma / sqrt(var + eps)
    s (Wx + b) + t = (sW) x + s b + t

Per-channel weight grids are scaled with their channel, so folding costs no accuracy at any bit width. What batch norm
knew of the folded output, its mean beta and its standard deviation |gamma| on the training data, stays on the node as
`node.meta["bn"]`: it is what data-free methods live on.
"""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.errors import SourceError
from zaq.ir.nodes import attribute, groups_of, has_bias, not_its_own, set_parameter, source_line
from zaq.ir.ops import BATCH_NORMS, LINEARS, TRANSPOSED, WEIGHTED

__all__ = ["Affine", "BatchNormStats", "affine", "fold"]

aten = torch.ops.aten
AFFINE = {aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor}


@dataclass(frozen=True)
class BatchNormStats:
    """The output of a folded layer on the data the model was trained with, each (C,); and batch norm's own input."""

    mean: Tensor
    std: Tensor
    running_mean: Tensor
    running_std: Tensor


def fold(gm: GraphModule) -> tuple[GraphModule, list[str]]:
    """A copy of the graph with every batch norm, scale and shift folded that can be, and a sentence for each norm that
    cannot.
    """
    gm = copy.deepcopy(gm)
    skipped = []
    for node in list(gm.graph.nodes):
        found = affine(gm, node)
        layer = _layer_before(gm, *found) if found is not None else None
        if found is not None and _changes_nothing(node, found):
            node.replace_all_uses_with(found.source)
        elif found is not None and layer is not None:
            _fold_affine(gm, node, layer, found)
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

    weight, bias = attribute(gm, str(layer.args[1].target)), _bias(gm, layer, running_mean)
    _set_weight(gm, layer, gain)
    _set_bias(gm, layer, ((bias - running_mean) * gain + beta).to(weight.dtype))

    stats = BatchNormStats(beta.float(), gamma.abs().float(), running_mean.float(), running_std.float())
    layer.meta["bn"] = stats
    bn.replace_all_uses_with(layer)
    gm.graph.erase_node(bn)


class Affine(NamedTuple):
    """What a node makes of one tensor: gain times it, plus shift; of every value the same, or of every channel."""

    source: Node
    constant: Tensor  # as it was written, in the shape that says which dimension are the channels
    gain: Tensor
    shift: Tensor


def affine(gm: GraphModule, node: Node) -> Affine | None:
    """A product, quotient, sum or difference with a constant; None for any other node."""
    if node.target not in AFFINE or len(node.args) != 2 or node.kwargs:
        return None
    first, other = node.args
    live = [a for a in (first, other) if isinstance(a, Node) and a.op != "get_attr"]
    if len(live) != 1 or not isinstance(live[0].meta.get("val"), Tensor):
        return None
    source, given = live[0], other if live[0] is first else first
    value = attribute(gm, str(given.target)) if isinstance(given, Node) else torch.tensor(given)
    constant = value.detach().double()
    if not isinstance(given, Node | int | float) or value.is_complex() or value.dim() > source.meta["val"].dim():
        return None
    if not source.meta["val"].is_floating_point() or source.meta["val"].dtype != node.meta["val"].dtype:
        return None
    one, none = torch.ones_like(constant), torch.zeros_like(constant)
    if node.target is aten.mul.Tensor:
        return Affine(source, constant, constant, none)
    if node.target is aten.add.Tensor:
        return Affine(source, constant, one, constant)
    if node.target is aten.sub.Tensor:
        return Affine(source, constant, one, -constant) if source is first else Affine(source, constant, -one, constant)
    if source is first and bool((constant != 0).all()):
        return Affine(source, constant, 1 / constant, none)
    return None


def _changes_nothing(node: Node, found: Affine) -> bool:
    """Whether a product with 1 or a sum with 0: a swish of Paddle's multiplies by its beta."""
    same = bool((found.gain == 1).all() and (found.shift == 0).all())
    return same and node.meta["val"].shape == found.source.meta["val"].shape


def _layer_before(gm: GraphModule, source: Node, constant: Tensor, *_: Tensor) -> Node | None:
    """The layer whose channels a constant scales or shifts, each by a number of its own or all by one, through what
    only moves its result.
    """
    wide = [i for i, n in enumerate(constant.shape) if n > 1]
    if len(wide) > 1:
        return None
    axis = wide[0] - constant.dim() if wide else None  # of the channels, from behind
    while source.target in (aten.reshape.default, aten.permute.default, aten.transpose.int) and len(source.users) == 1:
        before, dims = source.args[0], source.meta["val"].dim()
        assert isinstance(before, Node)
        if axis is not None and source.target is aten.reshape.default:
            if axis != -1 or before.meta["val"].shape[-1] != source.meta["val"].shape[-1]:
                return None
        elif axis is not None:
            places = torch.empty(*range(1, dims + 1), device="meta")  # dimension i has i + 1 places
            axis = source.target(places, *source.args[1:]).shape[axis] - 1 - dims
        source = before
    alone = source.target in WEIGHTED and len(source.users) == 1 and not not_its_own(gm, source)
    if not alone or not isinstance(source.args[1], Node):
        return None
    channels = -1 if source.target in LINEARS else 1 - source.meta["val"].dim()
    count = int(source.meta["val"].shape[channels])
    return source if axis is None or (axis == channels and constant.numel() == count) else None


def _fold_affine(gm: GraphModule, node: Node, layer: Node, found: Affine) -> None:
    """Scale a layer's weight and bias and shift its bias, and drop the node that did."""
    channels = -1 if layer.target in LINEARS else 1 - layer.meta["val"].dim()
    count = int(layer.meta["val"].shape[channels])
    gain, shift = (v.flatten().expand(count) for v in (found.gain, found.shift))
    weight = layer.args[1]
    assert isinstance(weight, Node)
    dtype = attribute(gm, str(weight.target)).dtype
    if bool((gain != 1).any()):
        _set_weight(gm, layer, gain)
    if has_bias(layer) or bool((shift != 0).any()):
        _set_bias(gm, layer, (_bias(gm, layer, gain) * gain + shift).to(dtype))
    node.replace_all_uses_with(found.source)
    gm.graph.erase_node(node)
    if "bn" in layer.meta:
        s, t, stats = gain.float(), shift.float(), layer.meta["bn"]
        layer.meta["bn"] = replace(stats, mean=stats.mean * s + t, std=stats.std * s.abs())


def _bias(gm: GraphModule, layer: Node, like: Tensor) -> Tensor:
    """A layer's bias, or zeros."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    return attribute(gm, str(bias.target)).detach().double() if isinstance(bias, Node) else torch.zeros_like(like)


def _set_weight(gm: GraphModule, layer: Node, gain: Tensor) -> None:
    """Multiply each output channel of a layer's weight."""
    assert isinstance(layer.args[1], Node)
    target = str(layer.args[1].target)
    weight = attribute(gm, target)
    set_parameter(gm, target, (weight.detach().double() * _per_output(layer, gain, weight)).to(weight.dtype))


def _set_bias(gm: GraphModule, layer: Node, bias: Tensor) -> None:
    """Put a bias in the place of a layer's own, or where it has none."""
    assert isinstance(layer.args[1], Node)
    target = str(layer.args[1].target)
    owner, _, _ = target.rpartition(".")
    bias_target = str(layer.args[2].target) if len(layer.args) > 2 and isinstance(layer.args[2], Node) else ""
    bias_target = bias_target or (f"{owner}.bias" if owner else "bias")
    if not any(n.target == bias_target for n in layer.all_input_nodes) and hasattr(gm.get_submodule(owner), "bias"):
        bias_target = f"{target}_folded_bias"  # somebody else's bias lives under that name
    set_parameter(gm, bias_target, bias)
    with gm.graph.inserting_before(layer):
        bias_node = gm.graph.get_attr(bias_target)
    layer.args = (*layer.args[:2], bias_node, *layer.args[3:])


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
