"""Bias correction: rounding a weight shifts the mean of what its layer writes, and the bias can take that back.

    E[y~] - E[y] = eps * E[x],   eps = W~ - W,   b' = b - eps * E[x]        (DFQ; Nagel et al. 2019, section 4.2)

Analytic: E[x] from batch norm's statistics (`moments`). Empirical: both means measured on synthetic samples, layer by
layer from the front, so that each layer also takes back what those before it shifted.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from zaq.config.memory import at_once
from zaq.ir.move import device_of
from zaq.ir.nodes import add_to_bias, has_bias, not_its_own, shape_of, weight_of
from zaq.ir.ops import PADS, TRANSPOSED
from zaq.quant.edges import weighted_layers
from zaq.quant.placement import Placement
from zaq.stats.moments import Clipped

__all__ = ["correct_analytically", "correct_empirically"]

BIAS = (2,)  # of a layer's arguments
TOGETHER = 2**20  # values of samples that a layer is run on at once


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
    expected: dict[str, Tensor] = {}

    def note(node: Node, values: list[Tensor]) -> None:
        expected[node.name] = _mean(values)

    def correct(node: Node, values: list[Tensor]) -> None:
        shift = expected[node.name] - _mean(values)
        add_to_bias(student, node, shift)
        for value in values:
            value += shift.view(1, -1, *[1] * (value.dim() - 2))

    _layer_by_layer(teacher, samples, layers, note)
    _layer_by_layer(student, samples if noisy is None else noisy, set(expected), correct)
    return len(expected)


def _layer_by_layer(
    gm: GraphModule, samples: Tensor, layers: set[str], look: Callable[[Node, list[Tensor]], None]
) -> None:
    """Run a graph on all samples, one node after another, each on one part of them after another: what a node needs is
    let go of part by part, as what it makes comes to be. `look` sees the values of some layers, and may change them."""
    one, device = Interpreter(gm), device_of(gm)
    parts = samples.split(at_once(TOGETHER, samples.shape[1:]))
    known: list[dict[Node, Any]] = [{} for _ in parts]
    for n in gm.graph.nodes:
        for values, part in zip(known, parts, strict=True):
            one.env, one.args_iter = values, iter([part.to(device)])
            values[n] = one.run_node(n)
            for done in one.user_to_last_uses.get(n, ()):
                del values[done]
        if n.name in layers:
            look(n, [values[n] for values in known])


def _mean(parts: list[Tensor]) -> Tensor:
    """The mean of each channel, (C,), of a tensor in parts."""
    count = sum(map(len, parts))
    means = [len(x) / count * x.mean([d for d in range(x.dim()) if d != 1]) for x in parts]
    return torch.stack(means).sum(0)


def _expected_input(source: Node, known: dict[str, Clipped]) -> Tensor | None:
    """E[x] as one sample (1, C, H, W) or (1, C): the mean of each channel everywhere but where padding put zeros."""
    if source.target in PADS and isinstance(source.args[0], Node):
        inner = _expected_input(source.args[0], known)
        return None if inner is None else source.target(inner, *source.args[1:])
    shape = shape_of(source)
    if source.name not in known or shape is None or shape[0] != len(known[source.name].mu):
        return None
    return known[source.name].mean.view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)
