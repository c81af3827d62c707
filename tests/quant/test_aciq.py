"""ACIQ's closed forms against what they minimise, and bits that add up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zaq.quant.aciq import allocate_bits, alpha_gauss, alpha_laplace, clip_range

GRID = torch.linspace(0.05, 20, 400001, dtype=torch.double)


def mse_laplace(alpha: torch.Tensor, bits: int) -> torch.Tensor:
    return 2 * torch.exp(-alpha) + alpha**2 / (3 * 4**bits)


def mse_gauss(alpha: torch.Tensor, bits: int) -> torch.Tensor:
    beyond = (1 + alpha**2) * torch.erfc(alpha / math.sqrt(2)) - math.sqrt(2 / math.pi) * alpha * torch.exp(
        -(alpha**2) / 2
    )
    return beyond + alpha**2 / (3 * 4**bits)


@pytest.mark.parametrize("bits", range(1, 9))
def test_alphas_are_where_the_error_is_least(bits: int) -> None:
    assert alpha_laplace(bits) == pytest.approx(float(GRID[mse_laplace(GRID, bits).argmin()]), abs=2e-4)
    assert alpha_gauss(bits) == pytest.approx(float(GRID[mse_gauss(GRID, bits).argmin()]), abs=2e-4)


def test_alphas_are_the_published_ones() -> None:
    assert [alpha_laplace(m) for m in range(2, 9)] == pytest.approx(
        [2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89], abs=0.015
    )
    assert [alpha_gauss(m) for m in range(1, 9)] == pytest.approx(
        [1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92], abs=0.015
    )


@pytest.mark.parametrize(("name", "draw"), [
    ("laplace", torch.distributions.Laplace(0.0, 1.0)), ("gauss", torch.distributions.Normal(0.0, 1.0))])  # fmt: skip
@pytest.mark.parametrize("half", [False, True])
def test_clipping_beats_the_whole_range_on_real_draws(
    name: str, draw: torch.distributions.Distribution, half: bool
) -> None:
    """Quantized to 4 bits, samples of the distribution lose least near the range that the closed form gives."""
    torch.manual_seed(0)
    x = draw.sample((200000,))
    x = x.abs() if half else x
    deviation = float((x - x.mean()).abs().mean() if name == "laplace" else x.std())
    deviation = (
        deviation if not half else float(x.mean() if name == "laplace" else x.pow(2).mean().sqrt())
    )  # of the whole it is half of

    def error(low: float, high: float) -> float:
        scale = (high - low) / 15
        return float((((x - low) / scale).round().clamp(0, 15) * scale + low - x).pow(2).mean())

    low, high = clip_range(0.0, deviation, 4, float(x.min()), float(x.max()), name)
    best = min(error(low * k, high * k) for k in torch.linspace(0.4, 2.5, 60).tolist())
    assert error(low, high) < 1.1 * best and error(low, high) < 0.8 * error(float(x.min()), float(x.max()))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1e-6, 1e3), min_size=4, max_size=64), st.integers(2, 8))
def test_bits_are_so_many_on_average(deviations: list[float], bits: int) -> None:
    found = allocate_bits(torch.tensor(deviations), bits, least=2)
    assert int(found.min()) >= 2 and int(found.max()) <= 8
    assert float(found.double().mean()) <= bits + 1e-9
    order = torch.tensor(deviations).argsort()
    assert (found[order].diff() >= -1).all()  # more deviation, more bits, to the rounding


def test_wide_channels_get_more_bits() -> None:
    found = allocate_bits(torch.logspace(-1, 1, 16), 4, least=2)
    assert float(found.double().mean()) == 4 and found[-1] > found[0]


def test_bits_grow_with_two_thirds_of_the_deviations_logarithm() -> None:
    """Eight times the deviation is four times the steps; and what whole bits leave over goes where most was cut off."""
    found = allocate_bits(torch.tensor([1.0, 8.0]).repeat(8), 5)
    assert found.tolist() == [4, 6] * 8
    exact = torch.tensor([4.6, 3.4, 4.3, 3.7])  # floors 4, 3, 4, 3: two bits are left
    assert allocate_bits(2 ** (1.5 * exact), 4).tolist() == [5, 3, 4, 4]


@pytest.mark.parametrize("name", ["laplace", "gauss"])
def test_no_range_reaches_beyond_what_there_is(name: str) -> None:
    assert clip_range(0.0, 10.0, 4, -1.0, 2.0, name) == (-1.0, 2.0)
    assert clip_range(0.0, 10.0, 4, 0.0, 2.0, name) == (0.0, 2.0)
