"""Bits for each weight of its own, under a budget of bytes (ZeroQ, section 3.3).

    Omega_l(b) = 1/N sum_j KL(P(x_j) || P(x_j; weight l at b bits)),    min sum_l Omega_l(b_l) where sum_l bytes_l(b_l)
    <= target

Omega measures each weight alone, the sum takes it that they do not interact; then the best choice is found exactly,
by dynamic programming over the bytes. Bytes are those of the integers packed, numel * bits / 8, of 4 a scale, and of 4
for each bias. (In an ONNX file of today integers below 8 bits lie unpacked, except with `--format packed`.)
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from zaq.errors import BitsError
from zaq.ir.move import onto
from zaq.ir.nodes import attribute
from zaq.quant.edges import weighted_layers
from zaq.quant.fake_quantize import FakeQuantize

__all__ = ["Choice", "Sensitivities", "allocate", "divergence", "outputs_on", "packed_bytes", "sizes"]

MOST = 8  # bits
UNITS = 2**17  # steps that the bytes are counted in at most; fewer bytes than this between 2 and 8 bits: exact
SHOWN = 200  # points of the frontier that are kept


@dataclass(frozen=True)
class Choice:
    """Bits by weight, their sum of Omega, and the frontier: (bytes, least sum of Omega in so many)."""

    bits: dict[str, int]
    omega: float
    frontier: list[tuple[int, float]]


def packed_bytes(teacher: GraphModule, weights: dict[str, FakeQuantize]) -> int:
    """Bytes of a network's weights at their bits, of their scales, and of the biases of these layers."""
    return sum(_bytes(attribute(teacher, name), q, q.bits) for name, q in weights.items()) + _biases(teacher)


def sizes(teacher: GraphModule, weights: dict[str, FakeQuantize]) -> tuple[dict[str, dict[int, int]], int]:
    """Bytes of each weight at its own bits and all above, and bytes of the biases."""
    found = {
        name: {b: _bytes(attribute(teacher, name), q, b) for b in range(q.bits, MOST + 1)}
        for name, q in weights.items()
    }
    return found, _biases(teacher)


def _bytes(weight: Tensor, quantizer: FakeQuantize, bits: int) -> int:
    return -(-weight.numel() * bits // 8) + 4 * len(quantizer.scale)


def _biases(teacher: GraphModule) -> int:
    nodes = [n.args[2] for n in weighted_layers(teacher) if len(n.args) > 2]
    names = {str(n.target) for n in nodes if isinstance(n, Node) and n.op == "get_attr"}
    return sum(4 * attribute(teacher, name).numel() for name in names)


class Sensitivities:
    """Omega of each weight at the bits of its quantizer and all above, on grids like that quantizer's, one at a time.

    The teacher is as it was after each. `found`: weight -> bits -> Omega, as far as it is measured.

    Args:
        images: (N, C, H, W), taken `batch` at a time.
        search: see `FakeQuantize.fit_weight`.
    """

    def __init__(
        self,
        teacher: GraphModule,
        weights: dict[str, FakeQuantize],
        images: Tensor,
        search: bool = False,
        batch: int = 64,
    ) -> None:
        self.teacher, self.weights, self.images, self.search, self.batch = teacher, weights, images, search, batch
        with torch.no_grad():
            self.clean = outputs_on(teacher, images, batch)
        self.found: dict[str, dict[int, float]] = {}

    @torch.no_grad()
    def measure(self, name: str) -> None:
        """Measure one weight at all its bits."""
        weight, like, omega = attribute(self.teacher, name), self.weights[name], dict[int, float]()
        kept = weight.clone()
        try:
            for bits in range(like.bits, MOST + 1):
                alone = onto(FakeQuantize(bits, like.axis, len(like.scale), like.signed), kept.device)
                alone.fit_weight(kept, self.search)
                weight.copy_(alone(kept))
                outputs = outputs_on(self.teacher, self.images, self.batch)
                gaps = [divergence(p, q) for p, q in zip(self.clean, outputs, strict=True)]
                omega[bits] = sum(gaps) / len(gaps)
        finally:
            weight.copy_(kept)
        self.found[name] = omega


def outputs_on(gm: GraphModule, images: Tensor, batch: int) -> list[Tensor]:
    """Each output of a network for images (N, C, H, W), taken `batch` at a time."""
    parts = [pytree.tree_leaves(gm(x)) for x in images.split(batch)]
    return [torch.cat(output) for output in zip(*parts, strict=True)]


def divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) of logits (N, K), averaged over N; of outputs that are no classes, ||p - q||^2 / ||p||^2."""
    if p.dim() == 2:  # in double precision: in single, a small divergence comes out below 0 on some processors
        return float(
            F.kl_div(
                F.log_softmax(q.cpu().double(), 1),
                F.log_softmax(p.cpu().double(), 1),
                reduction="batchmean",
                log_target=True,
            )
        )
    return float((p - q).pow(2).sum() / p.pow(2).sum().clamp(min=1e-30))


def allocate(
    omega: dict[str, dict[int, float]], size: dict[str, dict[int, int]], target: int, fixed: int = 0
) -> Choice:
    """The bits with the least sum of Omega whose bytes, and `fixed` beside them, are no more than `target`.

    Exact where the bytes between the smallest and the largest choice have at most UNITS steps; elsewhere a weight's
    bytes are rounded up to one of UNITS. Raises BitsError, naming the smallest reachable size.
    """
    least = {name: min(choices.values()) for name, choices in size.items()}
    floor = fixed + sum(least.values())
    if target < floor:
        raise BitsError(
            f"target-size: {_mb(target)} cannot be reached; all weights at the fewest bits allowed, the first and the "
            "last layer "
            f"at those of --first-last, take {floor / 2**20:.4f} MB ({floor} bytes, biases and scales included)."
        )
    extra = {name: {b: n - least[name] for b, n in choices.items()} for name, choices in size.items()}
    room = sum(max(choices.values()) for choices in extra.values())
    unit = max(math.gcd(*(n for choices in extra.values() for n in choices.values())), -(-room // UNITS), 1)
    units = room // unit + len(size)
    cost, chosen = np.zeros(units + 1), {}  # cost[k]: the least sum of Omega of the weights so far in k units
    for name, choices in extra.items():
        best, which = np.full(units + 1, np.inf), np.zeros(units + 1, np.int8)
        for bits, more in choices.items():
            k = -(-more // unit)
            tried = cost[: units + 1 - k] + omega[name][bits]
            better = tried < best[k:]
            best[k:][better], which[k:][better] = tried[better], bits
        cost, chosen[name] = best, which
    k, bits_of = min((target - floor) // unit, units), {}
    total = float(cost[k])
    for name in reversed(chosen):
        bits_of[name] = int(chosen[name][k])
        k -= -(-extra[name][bits_of[name]] // unit)
    steps = [0, *(int(i) + 1 for i in np.flatnonzero(np.diff(cost) < 0))]
    shown = [
        steps[int(i)] for i in np.unique(np.linspace(0, len(steps) - 1, min(SHOWN, len(steps))).round().astype(int))
    ]
    return Choice({name: bits_of[name] for name in size}, total, [(floor + unit * i, float(cost[i])) for i in shown])


def _mb(size: int) -> str:
    return f"{size / 2**20:.4g} MB"
