"""Bias correction: rounding a weight shifts the mean of what its layer writes, and the bias can take that back.

    E[y~] - E[y] = eps * E[x],   eps = W~ - W,   b' = b - eps * E[x]        (DFQ; Nagel et al. 2019, section 4.2)

Analytic: E[x] from batch norm's statistics (`moments`). Empirical: both means measured on synthetic samples, layer by
layer from the front, so that each layer also takes back what those before it shifted.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from zaq.ir.nodes import add_to_bias, has_bias, not_its_own, shape_of, weight_of
from zaq.ir.ops import PADS, TRANSPOSED
from zaq.quant.edges import weighted_layers
from zaq.quant.placement import Placement
from zaq.stats.moments import Clipped

__all__ = ["correct_analytically", "correct_empirically"]

BIAS = (2,)  # of a layer's arguments


@torch.no_grad()
def correct_analytically(
    teacher: GraphModule, student: GraphModule, placement: Placement, known: dict[str, Clipped], mean_only: bool = False
) -> int:
    """Correct the student's biases in place from what is known (`moments`) of each layer's input; the number of layers
    corrected. A bias that several layers add is left alone, here as below: what one of them needs the others do not.

    `mean_only`: for the mean of eps in each output channel, as ACIQ corrects weights.
    """
    mine = {n.name: n for n in student.graph.nodes}
    corrected = 0
    for node in weighted_layers(teacher):
        source = node.all_input_nodes[0]
        expected = _expected_input(source, known)
        if expected is None or node.target in TRANSPOSED or not has_bias(node) or not_its_own(teacher, node, BIAS):
            continue
        weight = weight_of(student, mine[node.name])
        rounded = placement.weights[placement.layers[node.name][1]](weight)
        error = rounded.cpu().double() - weight_of(teacher, node).cpu().double()
        if mean_only:
            error = error.flatten(1).mean(1).view(-1, *[1] * (error.dim() - 1)).expand_as(error)
        shift: Tensor = node.target(expected, error, None, *node.args[3:])  # type: ignore[operator]  # (1, O, ...)
        add_to_bias(student, mine[node.name], -shift.flatten(2).mean((0, 2)) if shift.dim() > 2 else -shift.mean(0))
        corrected += 1
    return corrected


@torch.no_grad()
def correct_empirically(
    teacher: GraphModule, student: GraphModule, samples: Tensor, noisy: Tensor | None = None
) -> int:
    """Correct the student's biases in place on synthetic samples (N, C, H, W); the number of layers corrected.

    noisy: what the student reads instead, where both are the same block of two networks.
    """
    layers = {n.name for n in weighted_layers(teacher) if has_bias(n) and not not_its_own(teacher, n, BIAS)}
    expected = _Means(teacher, layers)
    expected.run(samples)
    _Corrector(student, expected.means).run(samples if noisy is None else noisy)
    return len(expected.means)


class _Means(Interpreter):
    """Runs a graph and remembers the mean of each channel that some of its nodes write."""

    def __init__(self, gm: GraphModule, layers: set[str]) -> None:
        super().__init__(gm)
        self.layers, self.means = layers, dict[str, Tensor]()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.layers:
            self.means[n.name] = _mean(value)
        return value


class _Corrector(Interpreter):
    """Runs a graph and, as it goes, moves each layer's bias to where its output has the mean expected."""

    def __init__(self, gm: GraphModule, expected: dict[str, Tensor]) -> None:
        super().__init__(gm)
        self.gm, self.expected = gm, expected

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.expected:
            shift = self.expected[n.name] - _mean(value)
            add_to_bias(self.gm, n, shift)
            value = value + shift.view(1, -1, *[1] * (value.dim() - 2))
        return value


def _mean(x: Tensor) -> Tensor:
    return x.mean([d for d in range(x.dim()) if d != 1])


def _expected_input(source: Node, known: dict[str, Clipped]) -> Tensor | None:
    """E[x] as one sample (1, C, H, W) or (1, C): the mean of each channel everywhere but where padding put zeros."""
    if source.target in PADS and isinstance(source.args[0], Node):
        inner = _expected_input(source.args[0], known)
        return None if inner is None else source.target(inner, *source.args[1:])
    shape = shape_of(source)
    if source.name not in known or shape is None or shape[0] != len(known[source.name].mu):
        return None
    return known[source.name].mean.view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)
