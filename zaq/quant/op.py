"""The one quantization operation: eager, autograd, torch.export and ONNX all see `zaq::fake_quantize`.

    q = clamp(round(x / S) + Z, quant_min, quant_max),   x^ = (q - Z) S

The gradient of x is the straight-through estimator: one where q was not clamped, else zero. The gradient of S is
LSQ's (Esser et al. 2020, eq. 3): (q - Z) - x / S inside the range and q - Z outside. Written in plain vectorised
operations: torch's own fused kernels take several times as long on a CPU (benchmarks/fake_quantize.py).
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["fake_quantize"]


@torch.library.custom_op("zaq::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    """Round `x` (any shape) to the grid of `scale` and `zero_point`, and return it as float of the same shape.

    scale is float32 and zero_point int32, each with one value (axis < 0) or one for every index of dimension `axis`.
    """
    step, zero = _along(scale, x, axis), _along(zero_point, x, axis)
    return (x / step).round_().add_(zero).clamp_(quant_min, quant_max).sub_(zero).mul_(step)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    return torch.empty_like(x)


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values in a shape that broadcasts along dimension `axis` of x."""
    return values if axis < 0 else values.view(-1, *[1] * (x.dim() - 1 - axis))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, ctx.axis, ctx.quant_min, ctx.quant_max = inputs
    ctx.save_for_backward(x, output, scale, zero_point)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, scale, zero_point = ctx.saved_tensors
    if grad.stride() != x.stride():  # mixed memory formats cost thirty times the work itself
        grad = torch.empty_like(x).copy_(grad)
    position = (x / _along(scale, x, ctx.axis)).add_(_along(zero_point, x, ctx.axis))
    # hardtanh's backward is the vectorised "grad where low < position < high, else 0"
    grad_x = torch.ops.aten.hardtanh_backward(grad, position, ctx.quant_min - 0.5, ctx.quant_max + 0.5)
    grad_scale = None
    if ctx.needs_input_grad[1]:
        dims = [d for d in range(x.dim()) if d != ctx.axis]
        grad_scale = ((grad * y).sum(dims) - (grad_x * x).sum(dims)).view(scale.shape) / scale
    return grad_x, grad_scale, None, None, None, None


fake_quantize.register_autograd(_backward, setup_context=_save)
