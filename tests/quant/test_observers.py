"""Observers: the range that each reads off batches whose least, greatest and mean values are known."""

import pytest
import torch
from torch import Tensor

from zaq.quant.aciq import alpha_gauss, alpha_laplace
from zaq.quant.observers import OBSERVERS, EMAObserver, GaussObserver, LaplaceObserver, MSEObserver, RangeObserver

BATCHES = [torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([-3.0, 1.0, 1.0]), torch.tensor([0.0, 0.5, 8.0])]


def seen(observer: RangeObserver, batches: list[Tensor]) -> tuple[float, float]:
    for batch in batches:
        assert observer(batch) is batch
    low, high = observer.range()
    return float(low), float(high)


def test_the_least_and_the_greatest_of_all_batches() -> None:
    assert seen(RangeObserver(), BATCHES) == (-3.0, 8.0)


def test_nothing_lies_outside_what_the_graph_guarantees() -> None:
    assert seen(RangeObserver(limits=(0.0, 6.0)), BATCHES) == (0.0, 6.0)
    assert seen(EMAObserver(limits=(-0.5, 1.0)), BATCHES) == (-0.5, 1.0)


def test_a_moving_average_of_the_ends() -> None:
    """The first batch's as they are, then nine parts of what was and one of what is new."""
    low = 0.9 * (0.9 * -1.0 + 0.1 * -3.0) + 0.1 * 0.0
    high = 0.9 * (0.9 * 2.0 + 0.1 * 1.0) + 0.1 * 8.0
    assert seen(EMAObserver(), BATCHES) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_seen_is_nothing_known(name: str) -> None:
    assert seen(OBSERVERS[name](), []) == (0.0, 0.0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_grids_hold_zero_and_the_range(name: str) -> None:
    """scale (high - low) / 255 and the integer that stands for 0, for values that lie evenly."""
    x, observer = torch.linspace(-1.0, 3.0, 4001), OBSERVERS[name](0, 255)
    low, high = seen(observer, [x])
    scale, zero = observer.calculate_qparams()
    assert float(scale) == pytest.approx((high - low) / 255, rel=0.01)
    assert int(zero) == pytest.approx(-low / float(scale), abs=1)


@pytest.mark.parametrize(
    ("observer", "draw", "alpha"),
    [
        (LaplaceObserver, torch.distributions.Laplace(0.5, 2.0), 2.0 * alpha_laplace(4)),
        (GaussObserver, torch.distributions.Normal(0.5, 2.0), 2.0 * alpha_gauss(4)),
    ],
)
def test_clips_where_the_distribution_seen_has_its_alpha(
    observer: type[LaplaceObserver], draw: torch.distributions.Distribution, alpha: float
) -> None:
    """Of batches of the distribution itself: mean - alpha to mean + alpha, inside of what was seen."""
    torch.manual_seed(0)
    low, high = seen(observer(0, 15), [draw.sample((100000,)) for _ in range(4)])
    assert (low, high) == pytest.approx((0.5 - alpha, 0.5 + alpha), abs=0.02 * alpha)


def test_one_far_value_does_not_set_the_range_of_least_error() -> None:
    """At 4 bits, 4000 normal values and one at 20: all others keep their steps, at the cost of the one."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(4000), torch.tensor([20.0])])

    def error(observer: RangeObserver) -> float:
        low, high = seen(observer, [x])
        scale, zero = observer.calculate_qparams()
        assert low < 0 < high
        return float(((x / scale + zero).round().clamp(0, 15).sub(zero).mul(scale) - x).abs().pow(2.4).sum())

    assert error(MSEObserver(0, 15)) < 0.8 * error(RangeObserver(0, 15))
