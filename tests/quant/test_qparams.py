"""Grids: zero is exact, both ends are covered, the searched range beats the whole one."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zaq.quant.qparams import affine_qparams, quant_range, search_range, symmetric_qparams


@settings(deadline=None)
@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(2, 8))
def test_affine_grid_holds_zero_and_covers_its_range_to_half_a_step(a: float, b: float, bits: int) -> None:
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    quant_min, quant_max = quant_range(bits, signed=False)
    scale, zero = affine_qparams(low, high, quant_min, quant_max)
    assert scale > 0 and quant_min <= zero <= quant_max and zero.dtype == torch.int32
    if max(abs(float(low)), abs(float(high))) > 1e-3:
        rest = (
            0.5 + 0.25 / quant_max
        )  # the zero point rounds by half a step of a grid that is wider where it rounds an end away
        assert (quant_max - zero + rest) * scale >= high.clamp(min=0) * 0.999 - 1e-6
        assert (quant_min - zero - rest) * scale <= low.clamp(max=0) * 0.999 + 1e-6
        assert scale * (quant_max - quant_min) <= 2.1 * (high.clamp(min=0) - low.clamp(max=0)) + 1e-6


def test_pixels_of_a_symmetric_normalisation_do_not_fall_between_steps() -> None:
    scale, zero = affine_qparams(torch.tensor(-1.0), torch.tensor(1.0), 0, 255)
    pixels = torch.arange(256) / 127.5 - 1
    position = pixels / scale + zero
    assert ((position - position.floor() - 0.5).abs() > 1e-3).float().mean() > 0.99


def searched(values: torch.Tensor, quant_max: int) -> float:
    rows = values[None]
    return float(search_range(rows, rows.amin(1), rows.amax(1), 0, quant_max, affine_qparams)[1])


def test_search_clips_an_outlier_and_keeps_what_fits() -> None:
    torch.manual_seed(0)
    assert searched(torch.cat([torch.rand(10000), torch.tensor([30.0])]), 15) < 20
    assert searched(torch.linspace(0, 1, 4097), 255) > 0.95


@pytest.mark.parametrize("grid", [symmetric_qparams, affine_qparams])
def test_search_beats_the_largest_value(grid: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    torch.manual_seed(0)
    rows = torch.distributions.Laplace(0.0, 1.0).sample((8, 144)) * torch.logspace(-3, 1, 8).view(-1, 1)
    ends = (-8, 7) if grid is symmetric_qparams else (0, 15)

    def error(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scale, zero = (v[:, None] for v in grid(low, high, *ends))
        return (((rows / scale).round() + zero).clamp(*ends).sub(zero) * scale - rows).abs().pow(2.4).sum(1)

    low, high = rows.amin(1), rows.amax(1)
    assert (error(*search_range(rows, low, high, *ends, grid)) < error(low, high)).all()


def test_a_channel_of_zeros_has_a_grid() -> None:
    zeros = torch.zeros(2)
    scale, _ = symmetric_qparams(*search_range(torch.zeros(2, 3), zeros, zeros, -8, 7, symmetric_qparams), -8, 7)
    assert torch.isfinite(scale).all() and (scale > 0).all()
