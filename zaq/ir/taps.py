"""Taps: the tensors inside a graph that teacher and student are compared at, as extra outputs of it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from zaq.ir.light import lighten
from zaq.ir.nodes import activations, compared, shape_of
from zaq.ir.ops import MOVES, PADS, POOLS

__all__ = ["taps", "with_taps"]


def taps(gm: GraphModule) -> list[str]:
    """Where teacher and student are compared: the last feature map of each spatial resolution, by node name."""
    last: dict[tuple[int, ...], str] = {}
    for node in activations(gm):
        shape = shape_of(node)
        if shape is None or len(shape) != 3 or shape[1] * shape[2] == 1 or node.target in MOVES | PADS | POOLS:
            continue
        last.pop(shape[1:], None)  # keep the order of execution
        last[shape[1:]] = node.name
    return list(last.values())


def with_taps(gm: GraphModule, names: list[str], of: Callable[[Tensor], Any] | None = None) -> GraphModule:
    """The same modules and parameters under a graph that returns ([outputs], [values of the named nodes]).

    The outputs are those in floating point, and for one of whole numbers what it was made from (`nodes.compared`).
    `of`: what is returned of each value in its place. It is computed as soon as the value is there, and so is its
    gradient, so that no value, and no gradient of one, waits in memory until all of them are there.
    A name that a fake-quantize follows is read before it. Raises KeyError for a name the graph does not have.
    """
    graph = Graph()
    copied: dict[Node, Node] = {}
    graph.graph_copy(gm.graph, copied)
    by_name = {node.name: copied[node] for node in gm.graph.nodes if node in copied}
    outputs = [copied[n] for n in compared(gm)]
    tapped = [by_name[name] for name in names]
    for i, node in enumerate(tapped if of else []):
        with graph.inserting_after(node):
            tapped[i] = graph.call_function(of, (node,))  # type: ignore[arg-type]
    graph.output((outputs, tapped))
    lighten(graph)
    return GraphModule(gm, graph)
