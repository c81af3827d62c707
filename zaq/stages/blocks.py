"""Blocks: the parts of a network between points that every value passes, found from the graph, not from class names.

Reconstruction learns them one after another, each from what enters it to what leaves it (BRECQ; Li et al. 2021, section
3.2). A residual block is one, since two values are alive inside of it; a chain is cut at every quantized tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from zaq.ir.nodes import activations, input_node, output_nodes, weight_of
from zaq.quant.edges import weighted_layers

__all__ = ["Block", "between", "blocks"]

LAYERS = 2  # weighted layers that parts are joined up to: a depthwise convolution and the pointwise one behind it
BATCH_SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Block:
    """From one tensor, by the name of the node that makes it, to those that leave it,
    the network's outputs included."""

    entry: str
    exits: tuple[str, ...]
    layers: tuple[str, ...]


def blocks(gm: GraphModule, ends: Iterable[str], most: int = LAYERS) -> list[Block]:
    """The blocks of a graph without quantizers, in the order of execution; every weighted layer is in one of them.

    ends: names of nodes between which a cut may lie. Neighbours are joined while they have `most` layers or fewer;
    where no cut can be made (dense connections, pyramids, a weight that is used again) a block has as many as it must.
    """
    allowed = {input_node(gm).name, *ends}
    order = [input_node(gm), *(n for n in activations(gm) if isinstance(n.meta.get("val"), Tensor))]
    position = {n: i for i, n in enumerate(order)}
    outputs, layers = output_nodes(gm), weighted_layers(gm)
    weights = {n: id(weight_of(gm, n)) for n in layers}
    last = {weight: position[n] for n, weight in weights.items()}  # that reads each weight
    samples = order[0].meta["val"].shape[0]  # rows of tokens and windows of images are no samples: no cut there
    cuts, alive = (
        [],
        0,
    )  # alive: the last position at which a value that exists already, or a weight used already, is read
    for i, node in enumerate(order):
        if node in weights:
            alive = max(alive, last[weights[node]])
        if alive <= i and node.name in allowed and node.meta["val"].shape[0] == samples:
            cuts.append(i)
        alive = max([alive, *(position[u] for u in node.users if u in position)])
    parts: list[tuple[int, int]] = []
    for start, end in zip(cuts, [*cuts[1:], len(order) - 1], strict=True):
        before = parts[-1][0] if parts else start
        inside = [sum(a < position[n] <= b for n in layers) for a, b in ((before, start), (start, end))]
        if parts and (0 in inside or sum(inside) <= most):
            parts[-1] = (before, end)
        elif start < end:
            parts.append((start, end))
    found = []
    for start, end in parts:
        exits = dict.fromkeys([order[end], *(n for n in outputs if start < position[n] <= end)])
        names = tuple(n.name for n in layers if start < position[n] <= end)
        found.append(Block(order[start].name, tuple(n.name for n in exits), names))
    return found


def between(gm: GraphModule, block: Block) -> GraphModule:
    """The same modules and parameters under a graph that maps a block's entry to the list of its exits.

    gm: the graph that `blocks` saw, or its student. The entry is read before its quantizer, which belongs to the block.
    """
    nodes = {n.name: n for n in gm.graph.nodes}
    needed: set[Node] = set()
    todo = [nodes[name] for name in block.exits]
    while todo:
        node = todo.pop()
        if node not in needed and node.name != block.entry:
            needed.add(node)
            todo += [] if node.target is BATCH_SIZE or _number(node) else node.all_input_nodes
    graph = Graph()
    x = graph.placeholder("x")
    copied: dict[Node, Any] = {nodes[block.entry]: x}
    for node in gm.graph.nodes:
        if node in needed:
            if _number(node):
                copied[node] = node.meta["val"]
                continue
            fresh = node.target is BATCH_SIZE and node.args[0] not in copied  # asked of a tensor from before the block
            copied[node] = (
                graph.call_function(BATCH_SIZE, (x, 0)) if fresh else graph.node_copy(node, lambda n: copied[n])
            )
    graph.output([copied[nodes[name]] for name in block.exits])
    return GraphModule(gm, graph)


def _number(node: Node) -> bool:
    """Whether a node is a height or a width, which stay open in the file and are the example's here."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), int)
