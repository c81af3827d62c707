"""FakeQuantize as a citizen of torch.ao.quantization."""

import pytest
import torch
from torch.ao.quantization import FakeQuantizeBase, HistogramObserver, MinMaxObserver

from zaq.quant.fake_quantize import BiasQuantize, FakeQuantize
from zaq.quant.observers import OBSERVERS, MSEObserver, RangeObserver


@pytest.mark.parametrize("observer", [MSEObserver, RangeObserver, MinMaxObserver, HistogramObserver])
def test_takes_any_observer(observer: type) -> None:
    torch.manual_seed(0)
    quantizer = FakeQuantize(8, observer=observer)
    assert isinstance(quantizer, FakeQuantizeBase)
    x = torch.randn(2000).clamp(-3, 3)
    quantizer.enable_observer()
    quantizer.disable_fake_quant()
    assert torch.equal(quantizer(x), x)
    quantizer.enable_fake_quant()
    quantizer.calibrate()
    assert quantizer.observer_enabled[0] == 0 and quantizer.fake_quant_enabled[0] == 1
    torch.testing.assert_close(quantizer(x), x, atol=0.6 * float(quantizer.scale.detach()) + 0.05, rtol=0)
    before = quantizer.scale.clone()
    quantizer(x * 100)  # ranges are frozen
    assert torch.equal(before, quantizer.scale)


@pytest.mark.parametrize("name", OBSERVERS)
def test_watches_with_any_of_ours(name: str) -> None:
    torch.manual_seed(0)
    quantizer, x = FakeQuantize(8), torch.randn(4000).clamp(-3, 3)
    quantizer.watch(name)
    assert torch.equal(quantizer(x), x)
    quantizer.calibrate()
    assert (quantizer(x) - x).pow(2).mean() < 1e-3


@pytest.mark.parametrize("observer", [*OBSERVERS.values(), MinMaxObserver, HistogramObserver])
def test_signed_grids_are_symmetric_whatever_watches(observer: type) -> None:
    torch.manual_seed(0)
    for x in (torch.randn(4000).clamp(-2, 3), torch.randn(4000).relu()):
        quantizer = FakeQuantize(8, signed=True, observer=observer)
        quantizer.enable_observer()
        quantizer(x)
        quantizer.calibrate()
        assert int(quantizer.zero_point) == 0 and (quantizer(x) - x).pow(2).mean() < 1e-3


def test_a_signed_range_covers_both_ends() -> None:
    quantizer = FakeQuantize(4, signed=True, limits=(0.0, 6.0))
    quantizer.set_range(-3.0, 9.0)
    assert int(quantizer.zero_point) == 0 and quantizer.limits()[1] == pytest.approx(6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_uses_no_more_levels_than_its_bits(bits: int) -> None:
    x = torch.randn(1, 5000)
    for quantizer in [FakeQuantize(bits, axis, signed=signed) for axis in (-1, 0) for signed in (True, False)]:
        for search in (True, False):
            quantizer.fit_weight(x, search)
            assert 2 ** (bits - 1) <= len(quantizer(x).detach().unique()) <= 2**bits


def test_limits_hold_the_observed_range() -> None:
    quantizer = FakeQuantize(8, limits=(0.0, 6.0))
    quantizer.watch("minmax")
    quantizer(torch.tensor([-3.0, 9.0]))
    quantizer.calibrate()
    low, high = quantizer.limits()
    assert low == 0 and abs(high - 6) < 1e-5


def test_bias_lies_on_the_accumulators_grid() -> None:
    activation, weight = FakeQuantize(8), FakeQuantize(8, axis=0, channels=3, signed=True)
    activation.set_qparams(torch.tensor([0.02]), torch.tensor([0]))
    weight.set_qparams(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3))
    module, bias = BiasQuantize(activation, weight), torch.randn(3, requires_grad=True)
    steps = module(bias) / (0.02 * torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    module(bias).sum().backward()
    assert torch.equal(bias.grad, torch.ones(3))  # type: ignore[arg-type]
    weight.disable_fake_quant()
    assert torch.equal(module(bias), bias)


@pytest.mark.parametrize("shape", [(6, 16, 3, 3), (6, 5, 1, 1), (6, 40), (4, 1, 5, 5)])
def test_no_pair_of_products_overflows(shape: tuple[int, ...]) -> None:
    """255 times two neighbouring weights, in either order of the kernel, stays in int16; and 7 bits are not needed for
    that.
    """
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) ** 3
    quantizer = FakeQuantize(8, 0, len(weight), signed=True)
    quantizer.pairs = True
    quantizer.fit_weight(weight)
    q = (quantizer(weight) / quantizer.scale.view(-1, *[1] * (weight.dim() - 1))).round().int()
    orders = [q.flatten(1)] + ([q.permute(0, 2, 3, 1).flatten(1)] if q.dim() == 4 else [])
    for rows in orders:
        for part in (rows.clamp(min=0), rows.clamp(max=0)):
            assert int((255 * (part[:, 1:] + part[:, :-1])).abs().max()) <= 32767
    assert int(q.abs().max()) > 64
