"""Cross-layer equalization (DFQ; Nagel, van Baalen, Blankevoort, Welling, 2019).

    W1_i' = W1_i / s_i,  b1_i' = b1_i / s_i,  W2_:i' = W2_:i s_i,      s_i = sqrt(r1_i / r2_i)         (eq. 11)

with r1_i the range of the weights that write channel i and r2_i of those that read it, over all channels that can carry
a scale (see `channels`). Of several writers or readers the geometric mean counts.
"""

import copy

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.ir.nodes import groups_of, weight_of
from zaq.passes.channels import carriers, columns, layers, rescale, rows

__all__ = ["DEAD", "equalize", "relax_relu6"]

aten = torch.ops.aten
CLOSE = 1e-4  # largest relative change of a scale at which equalization has converged
DEAD = 1e-5  # of its layer's largest weight: a channel whose weights are smaller than that carries no signal


def equalize(gm: GraphModule, iterations: int = 20) -> tuple[GraphModule, list[str]]:
    """A copy of a folded graph whose channels have alike ranges before and behind each region, and what stayed as it
    was.

    Raises nothing: what cannot carry a scale has 1.
    """
    gm = copy.deepcopy(gm)
    channels, reasons = carriers(gm)
    found = layers(gm, channels)
    read = {n: channels.roots(n.all_input_nodes[0]) for n in found}
    written = {n: channels.roots(n) for n in found}
    weights = {n: weight_of(gm, n).detach().double() for n in found}
    scale = torch.ones(len(channels.parents), dtype=torch.double)
    for _ in range(iterations):
        change = _step(found, weights, read, written, scale)
        if float(change) < CLOSE:
            break
    rescale(gm, channels, scale)
    return gm, reasons


def _step(
    layers: list[Node],
    weights: dict[Node, Tensor],
    read: dict[Node, Tensor],
    written: dict[Node, Tensor],
    scale: Tensor,
) -> Tensor:
    """One pass of eq. 11 over all regions at once (in place); the largest change of a scale's logarithm."""
    writers, readers = torch.zeros(
        2, 3, len(scale), dtype=torch.double
    )  # each: sum of log ranges, count, count of the living
    for node in layers:
        weight = (
            weights[node].abs()
            * scale[read[node]][columns(node, weights[node])]
            / rows(scale[written[node]], weights[node])
        )
        _add(writers, written[node], weight.flatten(1).amax(1))
        _add(readers, read[node], _per_input(node, weight))
    both = (writers[1] > 0) & (readers[1] > 0) & (writers[2] + readers[2] > 0)
    both[0] = False
    ratio = torch.where(both, writers[0] / writers[1].clamp(min=1) - readers[0] / readers[1].clamp(min=1), 0.0) / 2
    before = scale.clone()
    scale.mul_(ratio.exp())
    return (scale / before).log().abs().max()


def _add(sums: Tensor, index: Tensor, ranges: Tensor) -> None:
    """Add up logarithms. A dead channel has no range of its own: it takes the mean of its layer's, so that whatever
    stands on its other side comes down, or up, to what is usual there.
    """
    alive = ranges > DEAD * ranges.max()
    logs = torch.where(alive, ranges.clamp(min=1e-30).log(), 0.0)
    logs = torch.where(alive, logs, logs.sum() / alive.sum().clamp(min=1))
    for row, values in enumerate((logs, torch.ones_like(logs), alive.double())):
        sums[row].index_add_(0, index, values)


def _per_input(node: Node, weight: Tensor) -> Tensor:
    """The range of the weights that read each input channel, (I,)."""
    largest = weight.abs().flatten(2).amax(2) if weight.dim() > 2 else weight.abs()  # (O, I / groups)
    return largest.view(groups_of(node), -1, weight.shape[1]).amax(1).flatten()


def relax_relu6(gm: GraphModule) -> GraphModule:
    """A copy in which clips at 6 and the like are plain ReLUs, as DFQ's paper has it. This changes the function."""
    gm = copy.deepcopy(gm)
    for node in gm.graph.nodes:
        if node.target in (aten.hardtanh.default, aten.clamp.default) and len(node.args) > 1 and node.args[1] == 0:
            node.target, node.args = aten.relu.default, node.args[:1]
    gm.recompile()
    return gm
