"""Bias correction: rounding a weight shifts the mean of what its layer writes, and the bias can take that back.

    E[y~] - E[y] = eps * E[x],   eps = W~ - W,   b' = b - eps * E[x]        (DFQ; Nagel et al. 2019, section 4.2)

Analytic: E[x] from batch norm's statistics (`moments`). Empirical: both means measured on synthetic samples, layer by
layer from the front, so that each layer also takes back what those before it shifted.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.config import Card
from zaq.graph import LINEARS, TRANSPOSED, add_to_bias, has_bias, weight_of, with_taps
from zaq.quant.moments import moments
from zaq.quant.placement import Placement, weighted_layers

__all__ = ["correct_analytically", "correct_empirically"]


@torch.no_grad()
def correct_analytically(teacher: GraphModule, student: GraphModule, placement: Placement, card: Card) -> int:
    """Correct the student's biases in place from what is known of each layer's input; the number of layers corrected."""
    known = moments(teacher, card)
    mine = {n.name: n for n in student.graph.nodes}
    corrected = 0
    for node in weighted_layers(teacher):
        source = node.all_input_nodes[0]
        if source.name not in known or node.target in TRANSPOSED or not has_bias(node):
            continue
        weight = weight_of(student, mine[node.name])
        error = placement.weights[placement.layers[node.name][1]](weight).double() - weight_of(teacher, node).double()
        groups = node.args[6] if node.target not in LINEARS and len(node.args) > 6 else 1
        assert isinstance(groups, int)
        kernel = error.flatten(2).sum(2) if error.dim() > 2 else error  # (O, I / groups)
        mean = known[source.name].mean.view(groups, -1).repeat_interleave(len(kernel) // groups, 0)
        add_to_bias(student, mine[node.name], -(kernel * mean).sum(1))
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
