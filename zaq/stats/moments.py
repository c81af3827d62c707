"""What batch norm knows of every tensor's distribution, carried through the graph without any data.

A channel is taken for a normal distribution N(mu, sigma^2) clipped to [low, high]: batch norm gives mu = beta and
sigma = |gamma|, a ReLU clips at 0, an addition adds means and variances. With a = (low - mu) / sigma, b = (high - mu) /
sigma, phi and Phi the density and the distribution of N(0, 1) and Z = Phi(b) - Phi(a),

    E[clip(x)]   = mu Z + sigma (phi(a) - phi(b)) + low Phi(a) + high (1 - Phi(b))
    E[clip(x)^2] = (mu^2 + sigma^2) Z + 2 mu sigma (phi(a) - phi(b)) + sigma^2 (a phi(a) - b phi(b))
                   + low^2 Phi(a) + high^2 (1 - Phi(b))

(DFQ, Nagel et al. 2019, appendix C, for both ends; with low = 0, high = inf: gamma phi(-beta/gamma) + beta (1 -
Phi(-beta/gamma)).)

Pooling takes k values of a channel together; where windows reach over the edge, k is how many values of the map they
hold on average. The largest, of values as if they were independent: clipping keeps order, so it is the largest of k
normal values, clipped; for that one stands the normal distribution that has its mean and deviation (off by less than
0.01 sigma in the mean). The average, of values that are ALIKE: variance (1 + (k - 1) ALIKE) / k.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.ir.nodes import (
    activations,
    attribute,
    channel_limits,
    channel_padding,
    groups_of,
    input_node,
    renumbers,
    shape_of,
)
from zaq.ir.opening import opening
from zaq.ir.ops import CLAMPS, MOVES, PADS, POOLS, TRANSPOSED, WEIGHTED

__all__ = ["Clipped", "moments"]

aten = torch.ops.aten
# Correlation of two values of a channel in one map. In the last maps of CIFAR's ResNet-20 and ResNet-32 on training
# images the average of 64 has 0.25 and 0.26 of their variance, which independent values would not: they would have
# 1/64,
# and a range read off that clips what there is (`dfq` on CIFAR-100's loses 2 points at w8a8 and 6 at w4a4).
ALIKE = 0.25


@dataclass(frozen=True)
class Clipped:
    """A normal distribution clipped to [low, high], for each channel; every field (C,), in double precision."""

    mu: Tensor
    sigma: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mu: Tensor, sigma: Tensor) -> "Clipped":
        mu, sigma = mu.detach().double(), sigma.detach().double().clamp(min=1e-12)
        return cls(mu, sigma, torch.full_like(mu, -math.inf), torch.full_like(mu, math.inf))

    def clip(self, low: Tensor, high: Tensor) -> "Clipped":
        """Clipped again, (C,) or scalar ends."""
        return Clipped(self.mu, self.sigma, self.low.maximum(low.double()), self.high.minimum(high.double()))

    def reach(self, deviations: float) -> tuple[Tensor, Tensor]:
        """mu +- deviations sigma, inside the ends; (C,) each."""
        low, high = self.mu - deviations * self.sigma, self.mu + deviations * self.sigma
        return low.maximum(self.low).minimum(self.high), high.minimum(self.high).maximum(self.low)

    def largest(self, count: float) -> "Clipped":
        """Of the largest of `count` independent values of a channel."""
        mean, deviation = _largest_of(count)
        return replace(self, mu=self.mu + mean * self.sigma, sigma=deviation * self.sigma)

    def average(self, count: float, of: float) -> "Clipped":
        """Of the sum of `count` values of a channel over `of`; where `of` is more, the rest are zeros."""
        mean, zero = self.mean * count / of, self.low.new_tensor(0.0)
        low, high = (self.low.minimum(zero), self.high.maximum(zero)) if count < of else (self.low, self.high)
        variance = self.variance * count * (1 + (count - 1) * ALIKE) / of**2
        found = Clipped(mean, variance.sqrt().clamp(min=1e-12), low, high)
        for _ in range(20):  # the ends cut off more on one side: move until the mean is what it was
            found = replace(found, mu=found.mu + mean - found.mean)
        return found

    @property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        mean, square = self._moments()
        return (square - mean**2).clamp(min=0)

    def _moments(self) -> tuple[Tensor, Tensor]:
        a, b = (self.low - self.mu) / self.sigma, (self.high - self.mu) / self.sigma
        pdf_a, pdf_b = (torch.exp(-(v**2) / 2) / math.sqrt(2 * math.pi) for v in (a, b))
        below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
        inside = 1 - below - above
        low, high = (torch.where(p > 0, v, 0.0) for v, p in ((self.low, below), (self.high, above)))
        edge_a, edge_b = (torch.where(v.isfinite(), v, 0.0) * p for v, p in ((a, pdf_a), (b, pdf_b)))
        mean = self.mu * inside + self.sigma * (pdf_a - pdf_b) + low * below + high * above
        square = (
            (self.mu**2 + self.sigma**2) * inside
            + 2 * self.mu * self.sigma * (pdf_a - pdf_b)
            + self.sigma**2 * (edge_a - edge_b)
            + low**2 * below
            + high**2 * above
        )
        return mean, square


@cache
def _largest_of(count: float) -> tuple[float, float]:
    """Mean and deviation of the largest of `count` values of N(0, 1),
    whose density is count phi(x) Phi(x)^(count - 1)."""
    x = torch.linspace(-10, 10, 4001, dtype=torch.double)
    density = torch.exp(-(x**2) / 2) * torch.special.ndtr(x) ** (count - 1)
    density /= density.sum()
    mean = (density * x).sum()
    return float(mean), float((density * (x - mean) ** 2).sum().sqrt())


def moments(gm: GraphModule, card: Card) -> dict[str, Clipped]:
    """The distribution of each tensor of a folded graph, by node name; nothing is said of those that cannot be known.

    The image is taken for normal inside its bounds, with the mean and deviation of photographs. A layer without
    batch norm adds up what its inputs have, as if they were independent.
    """
    found: dict[Node, Clipped] = {}
    source = input_node(gm)
    if len(card.input) == 3:
        low, high = (v.flatten() for v in card.bounds())
        deviation, mean = (v.flatten() for v in card.spread())
        found[source] = Clipped.normal(mean, deviation).clip(low, high)
        for node, factors in opening(gm).items():
            scale, shift = (v.double().expand(card.input[0], 1, 1).flatten() for v in factors)
            ends = torch.stack([low * scale + shift, high * scale + shift])
            normal = Clipped.normal(mean * scale + shift, deviation * scale.abs())
            found[node] = normal.clip(ends.amin(0), ends.amax(0))
    for node in activations(gm):
        if node in found:
            continue
        known = _after(gm, node, [found.get(n) for n in node.all_input_nodes if n.op != "get_attr"])
        if known is not None:
            found[node] = known
    return {node.name: known for node, known in found.items()}


def _after(gm: GraphModule, node: Node, inputs: list[Clipped | None]) -> Clipped | None:
    if node.target in WEIGHTED and "bn" in node.meta:
        return Clipped.normal(node.meta["bn"].mean, node.meta["bn"].std)
    parts = [p for p in inputs if p is not None]
    if not parts or len(parts) < len(inputs):
        return None
    first = parts[0]
    if node.target in WEIGHTED:
        return _after_layer(gm, node, first)
    if node.target in CLAMPS:
        return first.clip(*channel_limits(node))
    if node.target is aten.mul.Tensor and isinstance(node.args[1], int | float):
        factor = float(node.args[1])
        ends = (first.low * factor, first.high * factor) if factor >= 0 else (first.high * factor, first.low * factor)
        return Clipped(first.mu * factor, first.sigma * abs(factor), *ends)
    if node.target is aten.add.Tensor and len(parts) == 2 and len(parts[0].mu) == len(parts[1].mu):
        total = Clipped.normal(parts[0].mean + parts[1].mean, (parts[0].variance + parts[1].variance).sqrt())
        return total.clip(parts[0].low + parts[1].low, parts[0].high + parts[1].high)
    if node.target is aten.cat.default and node.args[1:] == (1,):
        return Clipped(*(torch.cat([getattr(p, f) for p in parts]) for f in ("mu", "sigma", "low", "high")))
    if node.target in POOLS or node.target is aten.max_pool2d.default:
        return _after_pool(node, first)
    if node.target in MOVES | PADS:
        return _after_move(node, first)
    return None


def _after_pool(node: Node, known: Clipped) -> Clipped | None:
    """The largest, or the average, of as many values of a channel as a window holds of the map on average."""
    source = node.args[0]
    shape = shape_of(source) if isinstance(source, Node) else None
    if shape is None or len(shape) != 3 or shape[0] != len(known.mu):
        return None
    if node.target is aten.mean.dim:
        dims = [d % 4 for d in node.args[1] if isinstance(d, int)] if isinstance(node.args[1], list) else [0]
        count = float(math.prod(shape[d - 1] for d in dims))
        return known.average(count, count) if min(dims) > 1 else None
    if node.target not in (aten.max_pool2d.default, aten.avg_pool2d.default):  # adaptive
        count = math.prod(shape[1:]) / math.prod((shape_of(node) or shape)[1:])
        return known.average(count, count)
    ones, kernel = torch.ones(1, 1, *shape[1:]), node.args[1]
    assert isinstance(kernel, list) and callable(node.target)
    size = math.prod(kernel if len(kernel) == 2 else kernel * 2)
    count = round(size * float(aten.avg_pool2d(ones, *node.args[1:4]).mean()), 6)
    if node.target is aten.max_pool2d.default:
        return known.largest(count)
    return known.average(count, round(count / float(node.target(ones, *node.args[1:]).mean()), 6))


def _after_move(node: Node, known: Clipped) -> Clipped | None:
    """Channels stay where they are; flattening a map repeats each of them."""
    shape, padding = shape_of(node), channel_padding(node)
    rows = (
        node.target is aten.reshape.default
        and node.meta["val"].shape[0] != node.all_input_nodes[0].meta["val"].shape[0]
    )
    if renumbers(node) or rows:  # rows of a map are samples to a linear layer
        return None
    if padding:
        fields = (known.mu, known.sigma, known.low, known.high)
        return Clipped(*(F.pad(v, padding, value=fill) for v, fill in zip(fields, (0.0, 1e-12, 0.0, 0.0), strict=True)))
    if shape is None or shape[0] == len(known.mu):
        return known
    if (
        len(shape) == 1
        and shape[0] % len(known.mu) == 0
        and node.target in (aten.flatten.using_ints, aten.reshape.default)
    ):
        return Clipped(
            *(v.repeat_interleave(shape[0] // len(known.mu)) for v in (known.mu, known.sigma, known.low, known.high))
        )
    return None


def _after_layer(gm: GraphModule, node: Node, known: Clipped) -> Clipped | None:
    weight = attribute(gm, str(node.args[1].target)).detach().double() if isinstance(node.args[1], Node) else None
    groups = groups_of(node)
    if weight is None or node.target in TRANSPOSED or weight.shape[1] * groups != len(known.mu):
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    start = (
        attribute(gm, str(bias.target)).detach().double() if isinstance(bias, Node) and bias.op == "get_attr" else 0.0
    )
    kernel = weight.flatten(2).sum(2) if weight.dim() > 2 else weight  # (O, I / groups)
    power = weight.pow(2).flatten(2).sum(2) if weight.dim() > 2 else weight**2
    rows = len(weight) // groups
    mean, variance = (v.view(groups, -1).repeat_interleave(rows, 0) for v in (known.mean, known.variance))
    return Clipped.normal((kernel * mean).sum(1) + start, (power * variance).sum(1).sqrt())
