"""Swing convolutions: a strided convolution that looks at another pixel every time (Genie; Jeon et al. 2023, section
3.2).

A convolution of stride 2 never sees three quarters of the offsets, and images drawn against one show it: a pattern that
only those offsets would give away. Shifting what it reads at random makes them whole.
"""

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from zaq.ir.nodes import shape_of
from zaq.ir.ops import CONVS

__all__ = ["shifted", "with_swing"]


def with_swing(gm: GraphModule) -> GraphModule:
    """The same modules under a graph whose strided 2-d convolutions read their input shifted at random."""
    graph = Graph()
    copied: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, copied))
    for node, copy in copied.items():
        stride = node.args[3] if node.target in CONVS and len(node.args) > 3 else None
        source, shape = copy.args[0] if copy.args else None, shape_of(node)
        if (
            isinstance(source, Node)
            and isinstance(stride, list)
            and shape is not None
            and len(shape) == 3
            and max(stride) > 1
        ):
            with graph.inserting_before(copy):
                copy.args = (graph.call_function(_shifted, (source,)), *copy.args[1:])
    return GraphModule(gm, graph)


def _shifted(x: Tensor) -> Tensor:
    """(N, C, H, W) moved by up to a pixel either way, the edge mirrored."""
    if min(x.shape[2:]) < 2:
        return x
    for dim, by in zip((2, 3), torch.randint(3, (2,)).tolist(), strict=True):
        size = x.shape[dim]
        if by == 0:
            x = torch.cat([x.narrow(dim, 1, 1), x.narrow(dim, 0, size - 1)], dim)
        elif by == 2:
            x = torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 2, 1)], dim)
    return x  # padded and cut out again it would be the same, and the gradient would keep more


def shifted(images: Tensor, reach: int) -> Tensor:
    """All images rolled by up to `reach` pixels either way, and mirrored every other time: no pixel can be a trick.

    (N, C, H, W) -> the same.
    """
    down, right, mirror = (int(torch.randint(n, ())) for n in (2 * reach + 1, 2 * reach + 1, 2))
    rolled = images.roll((down - reach, right - reach), (2, 3))
    return rolled.flip(3) if mirror else rolled
