"""The quantization operation against its definition, against torch's own, and its gradients against differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zaq.quant.op import fake_quantize


@pytest.mark.parametrize("bits", range(2, 9))
def test_agrees_with_torch(bits: int) -> None:
    x = torch.randn(4, 5, 6, 7)
    scale, zero = torch.tensor([0.07]), torch.tensor([2**bits // 3], dtype=torch.int32)
    ours = fake_quantize(x, scale, zero, -1, 0, 2**bits - 1)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 2**bits - 1)
    torch.testing.assert_close(ours, theirs)
    scales, zeros = torch.rand(5) * 0.1 + 0.01, torch.zeros(5, dtype=torch.int32)
    ours = fake_quantize(x, scales, zeros, 1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    theirs = torch.fake_quantize_per_channel_affine(x, scales, zeros, 1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    torch.testing.assert_close(ours, theirs)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.001, 10), st.integers(0, 15), st.integers(0, 1000))
def test_values_lie_on_the_grid_and_stay_there(scale: float, zero: int, seed: int) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 20 * scale
    s, z = torch.tensor([scale]), torch.tensor([zero], dtype=torch.int32)
    y = fake_quantize(x, s, z, -1, 0, 15)
    q = y / s + zero
    torch.testing.assert_close(q, q.round(), atol=1e-3, rtol=0)
    assert q.min() >= -1e-3 and q.max() <= 15 + 1e-3
    torch.testing.assert_close(fake_quantize(y, s, z, -1, 0, 15), y)
    inside = (x / s + zero > 0) & (x / s + zero < 15)
    assert ((x - y).abs()[inside] <= 0.5001 * scale).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_straight_through_and_lsq_gradients(layout: torch.memory_format) -> None:
    """LSQ, eq. 3: the scale's gradient is q - x/S inside the range and the clamped integer outside."""
    x = (torch.randn(2, 3, 4, 4) * 2).to(memory_format=layout).requires_grad_()
    scale, zero = torch.tensor([0.3], requires_grad=True), torch.tensor([3], dtype=torch.int32)
    weight = torch.randn(2, 3, 4, 4)
    (fake_quantize(x, scale, zero, -1, 0, 7) * weight).sum().backward()
    v = (x / scale).detach()
    inside = (v.round() + 3 >= 0) & (v.round() + 3 <= 7)
    torch.testing.assert_close(x.grad, weight * inside)
    per_element = torch.where(inside, v.round() - v, (v.round() + 3).clamp(0, 7) - 3)
    torch.testing.assert_close(scale.grad, (weight * per_element).sum().view(1), atol=1e-4, rtol=1e-4)


def test_per_channel_scale_gradient() -> None:
    x, scale = torch.randn(3, 8), torch.tensor([0.1, 0.2, 0.4], requires_grad=True)
    fake_quantize(x, scale, torch.zeros(3, dtype=torch.int32), 0, -8, 7).sum().backward()
    v = x / scale.detach()[:, None]
    expected = torch.where(v.round().clamp(-8, 7) == v.round(), v.round() - v, v.round().clamp(-8, 7)).sum(1)
    torch.testing.assert_close(scale.grad, expected, atol=1e-5, rtol=1e-5)


CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axis", [-1, 0])
def test_passes_torchs_own_checks_of_custom_operations(dtype: torch.dtype, axis: int) -> None:
    x, count = torch.randn(3, 4, dtype=dtype, requires_grad=True), 1 if axis < 0 else 3
    s, z = torch.full((count,), 0.1, requires_grad=True), torch.full((count,), 100, dtype=torch.int32)
    torch.library.opcheck(fake_quantize, (x, s, z, axis, 0, 255), test_utils=CHECKS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axis", [-1, 0])
def test_every_precision_gives_what_float32_does(dtype: torch.dtype, axis: int) -> None:
    """The same values and gradients but for their last bits, in the input's dtype; the scale's gradient in its own."""
    x = torch.randn(8, 400, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for one in (x, x.float()):
        scale = torch.full((1 if axis < 0 else 8,), 0.02, requires_grad=True)
        one = one.clone().requires_grad_()
        y = fake_quantize(one, scale, torch.full(scale.shape, 100, dtype=torch.int32), axis, 0, 255)
        (y * one.detach()).sum().backward()
        assert y.dtype == one.dtype and one.grad is not None and one.grad.dtype == one.dtype
        assert scale.grad is not None and scale.grad.dtype == torch.float32
        found.append((y.detach().float(), one.grad.float(), scale.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3 * float(b.abs().max()))
