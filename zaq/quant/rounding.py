"""Rounding that looks at more than one weight: SQuant's in closed form, AdaRound's by learning.

Both choose integers q for a weight w on a grid of scale s; `into_cells` then moves w to where nearest rounding gives q.
"""

import torch
from torch import Tensor, nn

from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.op import along

__all__ = ["LearnedRounding", "into_cells", "squant"]

ZETA, GAMMA = 1.1, -0.1  # AdaRound's stretch of the sigmoid, so that 0 and 1 are reached
EDGE = 0.05  # steps that a moved weight stays away from the edge of its cell


def squant(quantizer: FakeQuantize, weight: Tensor) -> Tensor:
    """SQuant (Guo et al. 2022): the integers whose error sums to half a step at most, per kernel and per channel.

    Minimises the diagonal of the layer's Hessian, then what is constant in a kernel, then what is constant in an output
    channel, by rounding the fewest weights the other way; none moves more than one step. weight: (O, ...), any grid.
    """
    exact, low, high = _position(quantizer, weight.detach())
    exact = exact.clamp(low, high)  # what the grid cuts off is lost, and not made up for by others
    rows = exact.transpose(0, max(quantizer.axis, 0))
    kernels = rows.shape[1] if rows.dim() > 2 and rows[0, 0].numel() > 1 else rows[0].numel()
    exact = rows.reshape(len(rows), kernels, -1)  # (O, kernels, elements)
    bounds = low.reshape(-1, 1, 1), high.reshape(-1, 1, 1)
    q = exact.round()
    q = _flip(q, q - exact, bounds)
    error = q - exact
    left = error.sum(2)  # (O, kernels), each within half a step
    # One more flip of a kernel's largest error of the same sign takes the kernel to the other side of zero.
    fits = (error * left.sign()[..., None]).masked_fill(_stuck(q, error, bounds), -1.0)
    largest, where = fits.max(2)
    candidate = torch.where(largest > 0, left, 0.0)
    chosen = _largest(candidate, left.sum(1))  # (O, kernels)
    step = -(chosen * left.sign())[..., None]
    return q.scatter_add(2, where[..., None], step).reshape(rows.shape).transpose(0, max(quantizer.axis, 0))


def _flip(q: Tensor, error: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Round the elements with the largest errors the other way, as many as bring the sum of a row next to zero."""
    free = error.masked_fill(_stuck(q, error, bounds), 0.0)
    return q - _largest(free, error.sum(-1)) * error.sign()


def _largest(error: Tensor, total: Tensor) -> Tensor:
    """1 for the round(|total|) elements of each row with the largest error of the total's sign, else 0. (..., n),
    (...)"""
    along = (error * total.sign()[..., None]).clamp(min=0)
    rank = along.argsort(-1, descending=True).argsort(-1)
    return ((rank < total.abs().round()[..., None]) & (along > 0)).to(error.dtype)


def _stuck(q: Tensor, error: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Where the other neighbour is no number of the grid."""
    other = q - error.sign()
    return (other < bounds[0]) | (other > bounds[1])


class LearnedRounding(nn.Module):
    """AdaRound (Nagel et al. 2020, eq. 21-25) on a learned scale (Genie-M; Jeon et al. 2023).

        w~ = s clamp(floor(w / s0) + h(V), ...),   h(V) = clamp(sigmoid(V) (zeta - gamma) + gamma, 0, 1)

    with the base floor(w / s0) held while s moves; V starts where h(V) is what floor cut off. Stands in a weight's
    place.
    """

    def __init__(self, quantizer: FakeQuantize, weight: Tensor) -> None:
        super().__init__()
        self.quantizer = quantizer
        exact, self.low, self.high = _position(quantizer, weight.detach())
        self.base = exact.floor()
        self.v = nn.Parameter(torch.logit(((exact - self.base - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1 - 1e-4)))

    def h(self) -> Tensor:
        return (torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self, weight: Tensor, *biases: Tensor) -> Tensor:
        self.quantizer.read = self.quantizer.scale.detach()
        soft = (self.base + self.h()).clamp(self.low, self.high)
        return soft * along(self.quantizer.scale, weight, self.quantizer.axis)

    def regularization(self, beta: float) -> Tensor:
        """sum of 1 - |2 h(V) - 1|^beta, which is least where h is 0 or 1 (eq. 24)."""
        total: Tensor = (1 - (2 * self.h() - 1).abs().pow(beta)).sum()
        return total

    def codes(self) -> Tensor:
        """The integers that were learned, counted from the zero point."""
        return (self.base + (self.v.detach() >= 0)).clamp(self.low, self.high)


@torch.no_grad()
def into_cells(quantizer: FakeQuantize, weight: Tensor, codes: Tensor) -> None:
    """Move a weight, in place and no further than it must, to where it is rounded to `codes` (from the zero point)."""
    scale = along(quantizer.scale, weight, quantizer.axis)
    reach = 0.5 - EDGE
    weight.copy_(torch.minimum(torch.maximum(weight / scale, codes - reach), codes + reach) * scale)


def _position(quantizer: FakeQuantize, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight in steps of its grid, counted from the zero point, and the least and the greatest code there."""
    zero = along(quantizer.zero_point, weight, quantizer.axis)
    return (
        weight / along(quantizer.scale.detach(), weight, quantizer.axis),
        quantizer.quant_min - zero,
        quantizer.quant_max - zero,
    )
