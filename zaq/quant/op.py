"""The one quantization operation: eager, autograd, torch.export and ONNX all see `zaq::fake_quantize`.

    q = clamp(round(x / S) + Z, quant_min, quant_max),   x^ = (q - Z) S

The gradient of x is the straight-through estimator: one where q was not clamped, else zero. The gradient of S is
LSQ's (Esser et al. 2020, eq. 3): (q - Z) - x / S inside the range and q - Z outside. Written in plain vectorised
operations: torch's own fused kernels take several times as long on a CPU (benchmarks/fake_quantize.py).
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["along", "fake_quantize"]


@torch.library.custom_op("zaq::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    """Round `x` (any shape, any floating dtype) to the grid of `scale` and `zero_point`; of its shape and dtype.

    scale is float32 and zero_point int32, each with one value (axis < 0) or one for every index of dimension `axis`.
    Half precision is rounded in float32, where the integers are exact, and comes back as half precision.
    """
    step = along(scale, x, axis)
    low, high = _ends(zero_point, scale, x, axis, quant_min, quant_max)
    return (x / step).round_().clamp_(low, high).mul_(step).to(x.dtype)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    return torch.empty_like(x)


def along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values in a shape that broadcasts along dimension `axis` of x."""
    return values if axis < 0 else values.view(-1, *[1] * (x.dim() - 1 - axis))


def _ends(zero_point: Tensor, scale: Tensor, x: Tensor, axis: int, quant_min: int, quant_max: int) -> tuple[Any, Any]:
    """The least and the greatest integer counted from the zero point: numbers where reading one does not make a GPU
    wait.
    """
    wait = x.device.type != "cpu"
    zero = int(zero_point) if axis < 0 and not wait else along(zero_point, x, axis).to(scale.dtype)
    return quant_min - zero, quant_max - zero


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, ctx.axis, ctx.quant_min, ctx.quant_max = inputs
    ctx.save_for_backward(x, output if ctx.needs_input_grad[1] else None, scale, zero_point)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, scale, zero_point = ctx.saved_tensors
    if grad.stride() != x.stride():  # mixed memory formats cost thirty times the work itself
        grad = torch.empty_like(x).copy_(grad)
    dtype = x.dtype
    if dtype.itemsize < scale.dtype.itemsize:  # sums over a tensor in half precision are no sums
        x, y, grad = x.to(scale.dtype), y.to(scale.dtype), grad.to(scale.dtype)
    low, high = _ends(zero_point, scale, x, ctx.axis, ctx.quant_min, ctx.quant_max)
    step = along(scale, x, ctx.axis)
    # hardtanh's backward is the vectorised "grad where low < x < high, else 0"; it takes numbers
    if isinstance(low, int):
        ends = (float((low - 0.5) * step.detach()), float((high + 0.5) * step.detach()))
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, *ends)
    else:
        grad_x = torch.ops.aten.hardtanh_backward(grad, x / step - low, -0.5, ctx.quant_max - ctx.quant_min + 0.5)
    grad_scale = None
    if ctx.needs_input_grad[1] and ctx.axis < 0:
        grad_scale = (_dot(grad, y) - _dot(grad_x, x)).view(scale.shape) / scale
    elif ctx.needs_input_grad[1]:
        dims = [d for d in range(x.dim()) if d != ctx.axis]
        grad_scale = ((grad * y).sum(dims) - (grad_x * x).sum(dims)) / scale
    return grad_x.to(dtype), grad_scale, None, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """sum of a b, without a tensor for the products where the two lie alike."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


fake_quantize.register_autograd(_backward, setup_context=_save)
