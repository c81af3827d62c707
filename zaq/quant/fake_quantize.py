"""`FakeQuantize`: the one concept of quantization, a module on an edge of the graph, for weights and activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from zaq.quant.observers import MSEObserver
from zaq.quant.op import fake_quantize
from zaq.quant.qparams import quant_range, search_symmetric, symmetric_qparams

__all__ = ["BiasQuantize", "FakeQuantize"]

LARGEST_BIAS = 2**30  # in steps of the accumulator; leaves int32 as much room again for the sum itself


class FakeQuantize(FakeQuantizeBase):
    """Rounds a tensor to the grid of `scale` and `zero_point`; watches it first, while its observer is enabled.

    A citizen of torch.ao.quantization: takes any of its observers, answers to enable_observer, disable_observer,
    enable_fake_quant, disable_fake_quant and calculate_qparams. `axis` >= 0: one scale for each index of that
    dimension, symmetric, which is for weights; else one scale and zero point for the tensor.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int = 8,
        axis: int = -1,
        channels: int = 1,
        signed: bool = False,
        observer: Callable[..., ObserverBase] = MSEObserver,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        self.bits, self.axis, self.signed = bits, axis, signed
        self.quant_min, self.quant_max = quant_range(bits, signed)
        self.scale = nn.Parameter(torch.ones(channels))
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32))
        self.guaranteed = False  # a range that the graph itself guarantees, which nothing should learn away
        self.observer: ObserverBase | None = None
        if axis < 0:
            self.observer = observer(quant_min=self.quant_min, quant_max=self.quant_max, **observer_kwargs)
        # Plain attributes beside torch.ao's buffers: reading a buffer would be a data-dependent branch in torch.export.
        self.observing, self.quantizing = True, True
        self.disable_observer()

    def enable_fake_quant(self, enabled: bool = True) -> None:
        super().enable_fake_quant(enabled)
        self.quantizing = bool(enabled)

    def enable_observer(self, enabled: bool = True) -> None:
        super().enable_observer(enabled)
        self.observing = bool(enabled)

    def forward(self, x: Tensor) -> Tensor:
        if self.observing and self.observer is not None:
            self.observer(x)
        if not self.quantizing:
            return x
        y: Tensor = fake_quantize(x, self.scale, self.zero_point, self.axis, self.quant_min, self.quant_max)
        return y

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """scale and zero_point as the observer would set them now."""
        if self.observer is None:
            return self.scale.detach(), self.zero_point
        scale, zero_point = self.observer.calculate_qparams()
        return scale.view(1).float(), zero_point.view(1).int()

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def calibrate(self) -> None:
        """Freeze the range at what was observed: set scale and zero point, forget what was seen."""
        self.set_qparams(*self.calculate_qparams())
        self.disable_observer()
        self.observer = None

    def fit_weight(self, weight: Tensor) -> None:
        """Set the scales to those with the least error on a weight (p = 2.4), one a channel."""
        reach = search_symmetric(weight, self.quant_min, self.quant_max, self.axis)
        self.set_qparams(*symmetric_qparams(reach, self.quant_max))

    def limits(self) -> tuple[float, float]:
        """The least and the greatest value the grid holds (per tensor)."""
        scale, zero_point = self.scale.detach()[0].item(), int(self.zero_point[0])
        return (self.quant_min - zero_point) * scale, (self.quant_max - zero_point) * scale

    def extra_repr(self) -> str:
        grid = "per_channel" if self.axis >= 0 else "per_tensor"
        return f"bits={self.bits}, {grid}, quant_min={self.quant_min}, quant_max={self.quant_max}"


class BiasQuantize(nn.Module):
    """Rounds a bias to multiples of s_x s_w, the step of the int32 accumulator that an integer kernel adds it to.

    (Jacob et al. 2018, eq. 11.) What is trained is then what is shipped, to the bit where arithmetic allows.
    """

    def __init__(self, activation: FakeQuantize, weight: FakeQuantize) -> None:
        super().__init__()
        self.sources = (activation, weight)  # a tuple, so that they are not registered twice

    def forward(self, bias: Tensor) -> Tensor:  # (C,) -> (C,)
        activation, weight = self.sources
        if not (activation.quantizing and weight.quantizing):
            return bias
        step = (activation.scale * weight.scale).detach()
        step = step.repeat(len(bias) // len(step))  # a grouped transposed convolution shares scales between groups
        return bias + ((bias / step).round() * step - bias).detach()

    @torch.no_grad()
    def make_room(self, bias: Tensor) -> None:
        """Coarsen the weight's grid in channels whose bias would overflow int32: dead ones, all but zero beside it."""
        activation, weight = self.sources
        needed = bias.abs() / (activation.scale * LARGEST_BIAS)
        weight.scale.copy_(weight.scale.maximum(needed.view(-1, len(weight.scale)).amax(0)))
