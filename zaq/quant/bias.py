"""Bias correction: rounding a weight shifts the mean of what its layer writes, and the bias can take that back.

    E[y~] - E[y] = eps * E[x],   eps = W~ - W,   b' = b - eps * E[x]        (DFQ; Nagel et al. 2019, section 4.2)

Analytic: E[x] from batch norm's statistics (`moments`). Empirical: both means measured on synthetic samples, layer by
layer from the front, so that each layer also takes back what those before it shifted.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.graph import PADS, TRANSPOSED, shape_of, with_taps
from zaq.nodes import add_to_bias, has_bias, weight_of
from zaq.quant.moments import Clipped
from zaq.quant.placement import Placement, weighted_layers

__all__ = ["correct_analytically", "correct_empirically"]


@torch.no_grad()
def correct_analytically(
    teacher: GraphModule, student: GraphModule, placement: Placement, known: dict[str, Clipped], mean_only: bool = False
) -> int:
    """Correct the student's biases in place from what is known (`moments`) of each layer's input; the number of layers corrected.

    `mean_only`: for the mean of eps in each output channel, as ACIQ corrects weights.
    """
    mine = {n.name: n for n in student.graph.nodes}
    corrected = 0
    for node in weighted_layers(teacher):
        source = node.all_input_nodes[0]
        expected = _expected_input(source, known)
        if expected is None or node.target in TRANSPOSED or not has_bias(node):
            continue
        weight = weight_of(student, mine[node.name])
        error = placement.weights[placement.layers[node.name][1]](weight).double() - weight_of(teacher, node).double()
        if mean_only:
            error = error.flatten(1).mean(1).view(-1, *[1] * (error.dim() - 1)).expand_as(error)
        shift: Tensor = node.target(expected, error, None, *node.args[3:])  # type: ignore[operator]  # (1, O, ...)
        add_to_bias(student, mine[node.name], -shift.flatten(2).mean((0, 2)) if shift.dim() > 2 else -shift.mean(0))
        corrected += 1
    return corrected


@torch.no_grad()
def correct_empirically(teacher: GraphModule, student: GraphModule, samples: Tensor) -> int:
    """Correct the student's biases in place on synthetic samples (N, C, H, W); the number of layers corrected."""
    layers = [n for n in weighted_layers(teacher) if has_bias(n)]
    expected = with_taps(teacher, [n.name for n in layers])(samples)[1]
    mine = {n.name: n for n in student.graph.nodes}
    for node, target in zip(layers, expected, strict=True):
        found = with_taps(student, [node.name])(samples)[1][0]
        dims = [d for d in range(found.dim()) if d != 1]
        add_to_bias(student, mine[node.name], (target - found).mean(dims))
    return len(layers)


def _expected_input(source: Node, known: dict[str, Clipped]) -> Tensor | None:
    """E[x] as one sample (1, C, H, W) or (1, C): the mean of each channel everywhere but where padding put zeros."""
    if source.target in PADS and isinstance(source.args[0], Node):
        inner = _expected_input(source.args[0], known)
        return None if inner is None else source.target(inner, *source.args[1:])
    shape = shape_of(source)
    if source.name not in known or shape is None or shape[0] != len(known[source.name].mu):
        return None
    return known[source.name].mean.view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)
