"""Grids: zero is exact, both ends are covered, the searched range beats the whole one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zaq.quant.qparams import affine_qparams, quant_range, search_range, search_symmetric, symmetric_qparams


@settings(deadline=None)
@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(2, 8))
def test_affine_grid_holds_zero_and_covers_its_range_to_half_a_step(a: float, b: float, bits: int) -> None:
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    quant_min, quant_max = quant_range(bits, signed=False)
    scale, zero = affine_qparams(low, high, quant_min, quant_max)
    assert scale > 0 and quant_min <= zero <= quant_max and zero.dtype == torch.int32
    if max(abs(float(low)), abs(float(high))) > 1e-3:
        assert (quant_max - zero + 0.5) * scale >= high.clamp(min=0) * 0.999 - 1e-6
        assert (quant_min - zero - 0.5) * scale <= low.clamp(max=0) * 0.999 + 1e-6
        assert scale * (quant_max - quant_min) <= 2.1 * (high.clamp(min=0) - low.clamp(max=0)) + 1e-6


def test_pixels_of_a_symmetric_normalisation_do_not_fall_between_steps() -> None:
    scale, zero = affine_qparams(torch.tensor(-1.0), torch.tensor(1.0), 0, 255)
    pixels = torch.arange(256) / 127.5 - 1
    position = pixels / scale + zero
    assert ((position - position.floor() - 0.5).abs() > 1e-3).float().mean() > 0.99


def test_search_clips_an_outlier_and_keeps_what_fits() -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.rand(10000), torch.tensor([30.0])])
    _, high = search_range(values, values.min(), values.max(), 0, 15)
    assert high < 20
    even = torch.linspace(0, 1, 4097)
    assert search_range(even, even.min(), even.max(), 0, 255)[1] > 0.95


def test_symmetric_search_beats_the_largest_value() -> None:
    torch.manual_seed(0)
    weight = torch.distributions.Laplace(0.0, 1.0).sample((8, 16, 3, 3)) * torch.logspace(-3, 1, 8).view(-1, 1, 1, 1)

    def error(reach: torch.Tensor) -> torch.Tensor:
        scale = symmetric_qparams(reach, 7)[0].view(-1, 1, 1, 1)
        return ((weight / scale).round().clamp(-8, 7) * scale - weight).abs().pow(2.4).flatten(1).sum(1)

    found, largest = search_symmetric(weight, -8, 7, 0), weight.abs().flatten(1).amax(1)
    assert (error(found) < error(largest)).all()


def test_a_channel_of_zeros_has_a_grid() -> None:
    scale, _ = symmetric_qparams(search_symmetric(torch.zeros(2, 3), -8, 7, 0), 7)
    assert torch.isfinite(scale).all() and (scale > 0).all()
