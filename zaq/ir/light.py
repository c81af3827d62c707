"""Convolutions that remember less: of one whose weights are not learned, the gradient needs no input.

autograd keeps the input of every convolution, whatever its weights need. In a network that images are drawn against
these are a third of all that is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

__all__ = ["lighten"]

aten = torch.ops.aten


def lighten(graph: Graph) -> None:
    """Have the graph's 2-d convolutions remember no more than they need; what they compute is the same."""
    for node in graph.nodes:
        if node.target is aten.conv2d.default and not node.kwargs:
            node.target = conv2d


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
    """aten.conv2d, (N, C, H, W) -> (N, O, H, W)."""
    learned = weight.requires_grad or (bias is not None and bias.requires_grad)
    plain = learned or not x.requires_grad or torch.is_autocast_enabled(x.device.type)
    run: Any = aten.conv2d.default if plain else _Light.apply
    y: Tensor = run(x, weight, bias, *rest)
    return y


class _Light(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.rest = x.shape, x.stride(), rest
        y: Tensor = aten.conv2d.default(x, weight, bias, *rest)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        given: tuple[Any, ...] = ctx.rest
        defaults: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
        stride, padding, dilation, groups = given + defaults[len(given) :]
        unread = weight.new_empty_strided(ctx.shape, ctx.stride)  # its shape alone is looked at
        found = aten.convolution_backward.default(
            gradients[0], unread, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )
        return found[0], None, None, *[None] * len(given)
