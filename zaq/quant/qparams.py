"""From a range to a grid: scale and zero point (Jacob et al. 2018, section 2.1), and the search for a good range."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["affine_qparams", "grid_of", "quant_range", "search_range", "symmetric_qparams"]

SMALLEST_SCALE = 2.0**-24  # a channel of zeros still needs a grid
CANDIDATES = 100
CACHED = 2**16  # values looked at together
NORM = 2.4  # the exponent of the error, as in BRECQ's and QDrop's search


def quant_range(bits: int, signed: bool) -> tuple[int, int]:
    """quant_min and quant_max: 0..2^k-1 unsigned, -2^(k-1)..2^(k-1)-1 signed."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def affine_qparams(low: Tensor, high: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """scale (float32) and zero_point (int32) of a grid that spans [low, high] and holds zero exactly.

    Rounding the zero point shifts the grid; the scale then grows until both ends are covered again. (Without that,
    pixels normalised to [-1, 1] all lie half-way between two steps, and rounding them is a toss-up between runtimes.)
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / (quant_max - quant_min)).clamp(min=SMALLEST_SCALE)
    zero_point = (quant_min - low / scale).round().clamp(quant_min, quant_max)
    above, below = (quant_max - zero_point).clamp(min=0.5), (zero_point - quant_min).clamp(min=0.5)
    scale = torch.where(zero_point < quant_max, high / above, scale).maximum(
        torch.where(zero_point > quant_min, -low / below, scale * 0)
    )
    return scale.clamp(min=SMALLEST_SCALE).float(), zero_point.int()


def symmetric_qparams(low: Tensor, high: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """scale = max|x| / (2^(k-1) - 1) and zero_point 0 (ZAQ's uniform quantizer)."""
    scale = (torch.maximum(-low, high) / quant_max).clamp(min=SMALLEST_SCALE).float()
    return scale, torch.zeros_like(scale, dtype=torch.int32)


Grid = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


def grid_of(quant_min: int) -> Grid:
    """Signed grids are symmetric, unsigned ones affine."""
    return symmetric_qparams if quant_min < 0 else affine_qparams


# What part of the range is tried. Beyond 1: a symmetric grid has one step more below zero than above.
SHRINK: dict[Grid, tuple[float, float]] = {affine_qparams: (1.0, 0.01), symmetric_qparams: (1.2, 0.2)}


def search_range(
    rows: Tensor, low: Tensor, high: Tensor, quant_min: int, quant_max: int, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Per row of `rows` (R, n), the part of [low, high] (R,), both ends shrunk alike, with the least sum |x^ - x|^2.4.

    A few rows at a time, so that they stay in the processor's cache: four times as fast.
    """
    count = max(CACHED // max(rows.shape[1], 1), 1)
    parts = zip(rows.split(count), low.split(count), high.split(count), strict=True)
    found = [_search_rows(r, least, most, quant_min, quant_max, grid) for r, least, most in parts]
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def _search_rows(
    rows: Tensor, low: Tensor, high: Tensor, quant_min: int, quant_max: int, grid: Grid
) -> tuple[Tensor, Tensor]:
    best, kept = torch.full_like(low, torch.inf), (low, high)
    for ratio in torch.linspace(*SHRINK[grid], CANDIDATES):
        scale, zero_point = grid(low * ratio, high * ratio, quant_min, quant_max)
        q = (rows / scale[:, None]).round_().add_(zero_point[:, None]).clamp_(quant_min, quant_max)
        error = q.sub_(zero_point[:, None]).mul_(scale[:, None]).sub_(rows).abs_().pow_(NORM).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        kept = torch.where(better, low * ratio, kept[0]), torch.where(better, high * ratio, kept[1])
    return kept
