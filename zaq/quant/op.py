"""The one quantization operation: eager, autograd, torch.export and ONNX all see `zaq::fake_quantize`.

    q = clamp(round(x / S) + Z, quant_min, quant_max),   x^ = (q - Z) S

The gradient of x is the straight-through estimator: one where q was not clamped, else zero. The gradient of S is
LSQ's (Esser et al. 2020, eq. 3): (q - Z) - x / S inside the range and q - Z outside.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["fake_quantize"]

_ON = torch.ones(1, dtype=torch.uint8)


@torch.library.custom_op("zaq::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    """Round `x` (any shape) to the grid of `scale` and `zero_point`, and return it as float of the same shape.

    scale is float32 and zero_point int32, each with one value (axis < 0) or one for every index of dimension `axis`.
    """
    if axis < 0:
        run = torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        return run(x, scale, zero_point, _ON, quant_min, quant_max)[0]  # type: ignore[no-any-return]
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, quant_min, quant_max)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, _, ctx.axis, _, _ = inputs
    ctx.save_for_backward(x, output, scale)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, scale = ctx.saved_tensors
    axis = ctx.axis if ctx.axis >= 0 else None
    step = scale if axis is None else scale.view(-1, *[1] * (x.dim() - 1 - axis))
    inside = (x - y).abs_() <= step * 0.5000001  # rounding moves a value half a step at most, clamping more
    grad_x = grad * inside
    grad_scale = None
    if ctx.needs_input_grad[1]:
        dims = [d for d in range(x.dim()) if d != axis]
        grad_scale = ((grad * y).sum(dims) - (grad_x * x).sum(dims)).view(scale.shape) / scale
    return grad_x, grad_scale, None, None, None, None


fake_quantize.register_autograd(_backward, setup_context=_save)
