"""High-bias absorption (DFQ; Nagel, van Baalen, Blankevoort, Welling, 2019; section 4.1.3).

A channel that hardly ever falls below c > 0 spends its range on an offset. Behind a clip at 0 the offset can move on:

    b1' = b1 - c,   b2' = b2 + W2 c,      c = max(0, beta - 3 gamma)

Exact where the channel stays above c, which holds for all but 0.1 % of a normal distribution's values. The upper end
of a clip moves by c too. Only where every reader is a layer without padding: at a border, padding is zero and not c.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.ir.nodes import (
    activations,
    add_to_bias,
    bias_of,
    channel_limits,
    groups_of,
    has_bias,
    not_its_own,
    set_limits,
    weight_of,
)
from zaq.ir.ops import CLAMPS, CONVS, LINEARS
from zaq.passes.channels import columns
from zaq.passes.equalize import DEAD

__all__ = ["absorb", "absorb_constants"]


def absorb_constants(gm: GraphModule) -> tuple[GraphModule, int]:
    """A copy in which channels that training has switched off are zero, as are the weights that read them; and their
    number.

    Batch norm can drive a layer's weights to nothing in a channel: what it writes is its bias, a constant. Neither the
    constant nor the weights that read it should set anybody's range. Where the constant is not zero, it moves into the
    bias of its readers first; where one of them pads, or has no bias of its own, the channel stays as it is. What batch
    norm knew of the channel (`meta["bn"]`) becomes zero with it. Keeps the function to about 1e-5.
    """
    gm, absorbed = copy.deepcopy(gm), 0
    for node in list(activations(gm)):
        layer = node.args[0] if node.target in CLAMPS else None
        if (
            not isinstance(layer, Node)
            or layer.target not in CONVS | LINEARS
            or len(layer.users) > 1
            or not has_bias(layer)
            or not_its_own(gm, layer)
        ):
            continue
        weight, bias = weight_of(gm, layer), bias_of(gm, layer)
        low, high = channel_limits(node)
        constant = bias.detach().double().maximum(low.double()).minimum(high.double())
        reach = weight.detach().abs().flatten(1).amax(1)
        off = (reach <= DEAD * reach.max()) & (low <= 0) & (high >= 0)
        readers = [
            r
            for r in node.users
            if r.target in CONVS | LINEARS
            and not not_its_own(gm, r)
            and len(constant) == weight_of(gm, r).shape[1] * groups_of(r)
        ]
        if len(readers) < len(node.users) or not all(_takes_a_shift(r) for r in readers):
            off &= constant == 0
        if len(readers) < len(node.users) or not bool(off.any()):
            continue
        absorbed += int(off.sum())
        c = torch.where(off, constant, 0.0)
        weight.data[off], bias.data[off] = 0, 0
        if "bn" in layer.meta:
            stats = layer.meta["bn"]
            layer.meta["bn"] = replace(
                stats, mean=torch.where(off, 0.0, stats.mean), std=torch.where(off, 0.0, stats.std)
            )
        for reader in readers:
            read = weight_of(gm, reader)
            index = columns(reader, read)
            if bool((c != 0).any()):
                _shift(gm, reader, c)
            read.data *= torch.where(off[index], 0.0, 1.0)
    return gm, absorbed


def absorb(gm: GraphModule, deviations: float = 3.0) -> tuple[GraphModule, int]:
    """A copy with the means of high channels moved on, and the number of channels that were."""
    gm, moved = copy.deepcopy(gm), 0
    for node in list(activations(gm)):
        readers = list(node.users)
        layer = node.args[0] if node.target in CLAMPS else None
        if not isinstance(layer, Node) or "bn" not in layer.meta or len(layer.users) > 1 or not readers:
            continue
        if not all(r.target in CONVS | LINEARS and _takes_a_shift(r) for r in readers):
            continue
        if any(not_its_own(gm, n) for n in (layer, *readers)):
            continue
        stats, (low, high) = layer.meta["bn"], channel_limits(node)
        if bool((low != 0).any()):
            continue
        c = (stats.mean - deviations * stats.std).clamp(min=0).minimum(high).double()
        if not bool((c > 0).any()):
            continue
        moved += int((c > 0).sum())
        layer.meta["bn"] = replace(stats, mean=stats.mean - c.float())
        add_to_bias(gm, layer, -c)
        if bool(high.isfinite().any()):
            set_limits(gm, node, torch.zeros_like(c), high - c)
        for reader in readers:
            _shift(gm, reader, c)
    gm.recompile()  # a clip's ends may have become its channels' own
    return gm, moved


def _shift(gm: GraphModule, reader: Node, c: Tensor) -> None:
    """b2 + W2 c, for constants (I,) that a layer's input channels lose."""
    weight = weight_of(gm, reader).detach().double()
    kernel = weight.flatten(2).sum(2) if weight.dim() > 2 else weight  # (O, I / groups)
    add_to_bias(gm, reader, (kernel * c[columns(reader, weight).flatten(1)]).sum(1))


def _takes_a_shift(node: Node) -> bool:
    padding = node.args[4] if node.target in CONVS and len(node.args) > 4 else [0]
    return has_bias(node) and isinstance(padding, list) and not any(padding)
