"""SQuant against its definition, learned rounding against its equations, and moving weights into cells."""

import pytest
import torch
from torch import Tensor

from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.rounding import EDGE, LearnedRounding, into_cells, squant

SHAPES = [(8, 6, 3, 3), (5, 4, 1, 1), (7, 12), (6, 1, 3, 3)]


def quantizer_of(weight: Tensor, bits: int = 4, axis: int = 0, signed: bool = True) -> FakeQuantize:
    channels = weight.shape[axis] if axis >= 0 else 1
    quantizer = FakeQuantize(bits, axis, channels, signed)
    quantizer.fit_weight(weight, search=False)
    return quantizer


def exact(quantizer: FakeQuantize, weight: Tensor) -> Tensor:
    shape = [-1 if d == quantizer.axis else 1 for d in range(weight.dim())]
    return (weight / quantizer.scale.view(shape)).detach()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("shape", SHAPES)
def test_squant_keeps_sums_within_half_a_step(shape: tuple[int, ...], axis: int, signed: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    quantizer = quantizer_of(weight, 4, axis, signed)
    codes, where = squant(quantizer, weight), exact(quantizer, weight)
    error = (codes - where).reshape(shape[0], -1)
    assert torch.equal(codes, codes.round()) and float(error.abs().max()) <= 1 + 1e-4
    assert float(error.sum(1).abs().max()) <= 0.5 + 1e-3  # of a channel
    if len(shape) == 4:  # of a kernel: half a step, or the whole one that its channel asked for
        assert float((codes - where).flatten(2).sum(2).abs().max()) <= 1 + 1e-3
    nearest = (where.round() - where).reshape(shape[0], -1)
    assert float(error.pow(2).sum()) < 2.5 * float(nearest.pow(2).sum())
    if shape[0] * shape[1] > 6:
        assert float(nearest.sum(1).abs().max()) > 0.5  # which rounding to nearest does not do


def test_squant_stays_on_the_grid() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3)
    quantizer = FakeQuantize(2, 0, 16, True)
    quantizer.set_qparams(
        torch.full((16,), 0.3), torch.zeros(16, dtype=torch.int32)
    )  # most weights lie beyond the ends
    codes = squant(quantizer, weight)
    assert float(codes.min()) >= quantizer.quant_min and float(codes.max()) <= quantizer.quant_max


def test_squant_of_a_transposed_convolution_sums_over_its_output_channel() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 4, 4)  # (in, out, ...)
    quantizer = quantizer_of(weight, axis=1)
    error = squant(quantizer, weight) - exact(quantizer, weight)
    assert float(error.transpose(0, 1).flatten(1).sum(1).abs().max()) <= 0.5 + 1e-3


@pytest.mark.parametrize("signed", [True, False])
def test_weights_move_into_cells_and_no_further(signed: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    quantizer = quantizer_of(weight, signed=signed)
    where = exact(quantizer, weight)
    codes = (where.round() + torch.randint(-1, 2, where.shape)).clamp(where.round().min(), where.round().max())
    moved = weight.clone()
    into_cells(quantizer, moved, codes)
    scale = quantizer.scale.detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(quantizer(moved).detach(), codes.clamp(*ends(quantizer)) * scale)
    stay = (where - codes).abs() <= 0.5 - EDGE
    torch.testing.assert_close(moved[stay], weight[stay])
    assert float((moved / scale - where).abs().max()) <= 1.5 + EDGE + 1e-4


def ends(quantizer: FakeQuantize) -> tuple[Tensor, Tensor]:
    zero = quantizer.zero_point.view(-1, 1, 1, 1)
    return quantizer.quant_min - zero, quantizer.quant_max - zero


@pytest.mark.parametrize("signed", [True, False])
def test_learned_rounding_starts_at_the_weight_and_ends_on_the_grid(signed: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    quantizer = quantizer_of(weight, signed=signed)
    rounding = LearnedRounding(quantizer, weight)
    torch.testing.assert_close(rounding(weight), weight, atol=1e-3, rtol=1e-3)
    nearest = exact(quantizer, weight).round().clamp(*ends(quantizer))
    assert float((rounding.codes() == nearest).float().mean()) > 0.999
    assert rounding.regularization(20.0) > rounding.regularization(2.0) > 0
    rounding.v.data = torch.where(torch.rand_like(rounding.v) < 0.5, -10.0, 10.0)
    assert rounding.regularization(2.0) == 0
    scale = quantizer.scale.detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(rounding(weight).detach(), rounding.codes() * scale)


def test_learned_rounding_finds_what_no_single_weight_sees() -> None:
    """One output, correlated inputs: the best integers for the sum are not the nearest of each weight."""
    torch.manual_seed(0)
    weight = torch.randint(-5, 5, (1, 16)) + 0.3 + 0.2 * torch.rand(1, 16)
    quantizer = FakeQuantize(4, 0, 1, True)
    quantizer.set_qparams(torch.ones(1), torch.zeros(1, dtype=torch.int32))
    x = torch.randn(256, 1) + 0.1 * torch.randn(256, 16)
    rounding = LearnedRounding(quantizer, weight)
    optimizer = torch.optim.Adam([rounding.v], 0.02)
    for i in range(300):
        loss = ((rounding(weight) - weight) @ x.T).pow(2).mean() + 0.1 * rounding.regularization(20 - 18 * i / 300)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned, nearest = (float(((codes - weight) @ x.T).pow(2).mean()) for codes in (rounding.codes(), weight.round()))
    assert learned < 0.3 * nearest, (learned, nearest)
