"""What the graph itself knows of a tensor's range, without any data: ReLU6 ends at 6, a sigmoid at 1,
a pixel at 255; and below -3 a hard swish gives 0, whatever it reads."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from zaq.config.card import Card
from zaq.ir.nodes import activations, clamp_limits, input_node, moves, pad_value
from zaq.ir.opening import opening
from zaq.ir.ops import CLAMPS, MOVES, PADS, POOLS

__all__ = ["Bounds", "bounds", "told_apart"]

aten = torch.ops.aten
INF = math.inf
# Between which values a function tells what it reads apart: beyond, it gives what it gives at the end, to 5e-4.
TOLD_APART: dict[Any, tuple[float, float]] = {
    aten.hardswish.default: (-3.0, INF),
    aten.hardsigmoid.default: (-3.0, 3.0),
    aten.silu.default: (-10.0, INF),
    aten.gelu.default: (-4.0, INF),
    aten.sigmoid.default: (-8.0, 8.0),
    aten.tanh.default: (-4.5, 4.5),
}
GATES: dict[Any, Any] = {aten.sigmoid.default: aten.silu.default, aten.hardsigmoid.default: aten.hardswish.default}
SOFTMAXES = {aten.softmax.int, aten._softmax.default}


@dataclass(frozen=True)
class Bounds:
    """No value lies outside [low, high]; `tight` if the network was made to reach both ends, as with ReLU6.

    `clamped`: tight by a clamp alone, which may also be a guard (at +-65504, say) that no value comes near.
    """

    low: float = -INF
    high: float = INF
    tight: bool = False
    clamped: bool = False


def bounds(gm: GraphModule, card: Card) -> dict[str, Bounds]:
    """Interval arithmetic over the graph: node name -> Bounds. An input of unknown normalisation has none."""
    found: dict[Node, Bounds] = {}
    if card.knows_pixels and card.input:
        low, high = card.bounds()
        found[input_node(gm)] = Bounds(float(low.min()), float(high.max()), tight=True)
        for node, (scale, shift) in opening(gm).items():
            ends = torch.stack([low * scale + shift, high * scale + shift])
            found[node] = Bounds(float(ends.min()), float(ends.max()), tight=True)
    for node in activations(gm):
        if node in found:
            continue
        parts = [found.get(n, Bounds()) for n in node.all_input_nodes if n.op != "get_attr"]
        if parts:
            found[node] = _bounds_of(node, parts)
    return {node.name: b for node, b in found.items()}


def _bounds_of(node: Node, parts: list[Bounds]) -> Bounds:
    first = parts[0]
    if node.target in CLAMPS:
        low, high = clamp_limits(node)
        made_for_it = math.isfinite(low) and math.isfinite(high) and node.target is not aten.clamp.Tensor
        clamped = first.clamped or (made_for_it and not first.tight)
        return Bounds(max(low, first.low), min(high, first.high), made_for_it or first.tight, clamped)
    if node.target in GATES:
        return Bounds(0.0, 1.0, tight=True)
    if node.target in SOFTMAXES:  # of which many entries share the 1: no row need come near it
        return Bounds(0.0, 1.0)
    if node.target is aten.tanh.default:
        return Bounds(-1.0, 1.0, tight=True)
    if node.target in MOVES | POOLS:
        return first
    if node.target in PADS:
        value = pad_value(node)
        return first if value is None else replace(first, low=min(value, first.low), high=max(value, first.high))
    if node.target is aten.cat.default:
        clamped, tight = any(p.clamped for p in parts), all(p.tight for p in parts)
        return Bounds(min(p.low for p in parts), max(p.high for p in parts), tight, clamped)
    if node.target is aten.add.Tensor and len(parts) == 2:
        return Bounds(parts[0].low + parts[1].low, parts[0].high + parts[1].high)
    return Bounds()


def told_apart(node: Node) -> tuple[float, float]:
    """Between which values what reads a tensor tells them apart: a range has no use beyond. Batch norm leaves much
    there, and with the half below -3 goes half of the numbers that a hard swish reads.
    """
    ends = [_ends_of(reader, node) for reader in node.users]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (-INF, INF)


def _ends_of(reader: Node, node: Node) -> tuple[float, float]:
    if moves(reader):
        return told_apart(reader)
    if reader.target in CLAMPS:
        return clamp_limits(reader)
    if reader.target is aten.mul.Tensor:  # x times a gate of x: a swish in two pieces
        gates = [n.target for n in reader.all_input_nodes if n.target in GATES and n.args[0] is node]
        return TOLD_APART[GATES[gates[0]]] if gates else (-INF, INF)
    return TOLD_APART.get(reader.target, (-INF, INF))
