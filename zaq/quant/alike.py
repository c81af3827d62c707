"""Whether the channels of what leaves a graph can share a scale.

They are alike if each reaches, from 0, at least a sixteenth of what the largest reaches: with less, a channel would be
left 4 of 8 bits or fewer. A detector's boxes in pixels and its scores are not; logits, colours and gates are. What a
channel reaches is what the graph guarantees of it (a sigmoid: 1), else what it is seen to on a few images. A channel
that is 0 everywhere has nothing to lose.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.card import Card
from zaq.ir.taps import with_taps
from zaq.quant.edges import leaving
from zaq.quant.fake_quantize import NEAR
from zaq.quant.ranges import Bounds, bounds

__all__ = ["LEAST_SPREAD", "alike", "channel_dim", "spreads", "unlike_channels"]

LEAST_SPREAD = 1e-3  # of the largest channel's: what varies less than that has no unit of its own


@torch.no_grad()
def unlike_channels(gm: GraphModule, card: Card, images: Tensor) -> frozenset[str]:
    """The names of those nodes of `edges.leaving` whose channels no common scale fits, as seen on images (N, C, H,
    W)."""
    known = bounds(gm, card)
    asked = [n.name for n in leaving(gm) if not known.get(n.name, Bounds()).tight]
    if not asked:
        return frozenset()
    values = with_taps(gm, asked)(images)[1]
    return frozenset(name for name, value in zip(asked, values, strict=True) if not alike(value))


def alike(x: Tensor) -> bool:
    """Whether the channels of a tensor (N, C, ...) or (N, ..., C) are alike."""
    if x.dim() < 2 or not x.is_floating_point():
        return True
    for dim in {1, x.dim() - 1}:
        reach = x.abs().movedim(dim, 0).flatten(1).amax(1)
        if bool((reach[reach > 0] < NEAR * reach.max()).any()):
            return False
    return True


def channel_dim(x: Tensor) -> int:
    """Which dimension of an output (N, ...) its channels lie along: the second, or the last (as in (N, places, 4 +
    classes)) where what lies along that is the more unlike by far."""
    if x.dim() < 3:
        return min(1, x.dim() - 1)
    second, last = (_unlikeness(x, dim) for dim in (1, x.dim() - 1))
    return x.dim() - 1 if last > 2 * second else 1


def _unlikeness(x: Tensor, dim: int) -> float:
    reach = x.detach().abs().movedim(dim, 0).flatten(1).amax(1)
    greatest = reach.max()
    return float(greatest / reach.min().clamp(min=LEAST_SPREAD * float(greatest) + 1e-30))


def spreads(deviations: Tensor) -> Tensor:
    """Units of channels from what each deviates by, (C,): as they are, but for what hardly varies beside others."""
    units = deviations.detach()
    return units.clamp(min=LEAST_SPREAD * float(units.max()) + 1e-12)
