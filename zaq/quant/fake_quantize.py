"""`FakeQuantize`: the one concept of quantization, a module on an edge of the graph, for weights and activations."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.compute.processes import uniform
from zaq.quant.ao import FakeQuantizeBase, ObserverBase
from zaq.quant.observers import OBSERVERS
from zaq.quant.op import fake_quantize
from zaq.quant.qparams import grid_of, quant_range, search_range, symmetric_qparams

__all__ = ["NEAR", "BiasQuantize", "FakeQuantize"]

LARGEST_PAIR = 127  # sum of two neighbouring weights in steps; 255 (127 + 1 of rounding) fits int16
LARGEST_BIAS = 2**30  # in steps of the accumulator; leaves int32 as much room again for the sum itself

NEAR = 1 / 16  # of the range between the ends of a clamp: values that cover less would be left 4 of 8 bits, or fewer


class FakeQuantize(FakeQuantizeBase):
    """Rounds a tensor to the grid of `scale` and `zero_point`; watches it first, while its observer is enabled.

    A citizen of torch.ao.quantization: takes any of its observers, answers to enable_observer, disable_observer,
    enable_fake_quant, disable_fake_quant and calculate_qparams. `axis` >= 0: one scale and zero point for each index
    of that dimension, which is for weights; else one for the tensor. `signed` grids are symmetric, their zero point 0.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int = 8,
        axis: int = -1,
        channels: int = 1,
        signed: bool = False,
        observer: Callable[..., ObserverBase] | None = None,
        limits: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        super().__init__()
        self.bits, self.axis, self.signed = bits, axis, signed
        self.quant_min, self.quant_max = quant_range(bits, signed)
        self.scale = nn.Parameter(torch.ones(channels))
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32))
        self.known = limits  # no value outside needs a number of its own, whatever was observed
        self.pairs = False  # of 8 bits, read beside 8-bit activations: see `step`
        # Of a weight: for each bias added in steps of its grid, the quantizer of what that layer reads. A tuple, so
        # that
        # modules are not registered twice.
        self.inputs: tuple[FakeQuantize, ...] = ()
        self.read: Tensor | None = None  # the scale that was read last, where that may be another than `scale`
        self.drop = 0.0  # part of the values that pass unrounded while a block is learned (QDrop; Wei et al. 2022)
        self.guaranteed = False  # a range that the graph itself guarantees, which nothing should learn away
        self.doubted = False  # guaranteed by a clamp, which may be a guard: kept only if values come near it
        self.observer: ObserverBase | None = (
            observer(quant_min=self.quant_min, quant_max=self.quant_max) if observer else None
        )
        # Plain attributes beside torch.ao's buffers: reading a buffer would be a data-dependent branch in torch.export.
        self.observing, self.quantizing = True, True
        self.disable_observer()

    def enable_fake_quant(self, enabled: bool = True) -> None:
        super().enable_fake_quant(enabled)
        self.quantizing = bool(enabled)

    def enable_observer(self, enabled: bool = True) -> None:
        super().enable_observer(enabled)
        self.observing = bool(enabled)

    def forward(self, x: Tensor, *biases: Tensor) -> Tensor:
        """Round x; a weight also reads the biases that are added in steps of its grid, which may need room."""
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # under autocast; grids are float32's
        if self.observing and self.observer is not None:
            self.observer(x)
        if not self.quantizing:
            return x
        scale = self.step(x, *biases)
        y: Tensor = fake_quantize(x, scale, self.zero_point, self.axis, self.quant_min, self.quant_max)
        return torch.where(uniform(x) < self.drop, x, y) if self.drop else y

    def on_grid(self, x: Tensor) -> Tensor:
        """x rounded to the grid of `scale` as it is, whatever room accumulators need."""
        y: Tensor = fake_quantize(x, self.scale, self.zero_point, self.axis, self.quant_min, self.quant_max)
        return y

    def step(self, x: Tensor, *biases: Tensor) -> Tensor:
        """The scale that is read: the learned one, or what an integer kernel's accumulators need where that is more.

        Two limits, both for weights. Two products must fit the 16 bits in which x86 without VNNI adds them in pairs:
        255 (|w_i| + |w_i+1|) <= 32767 for neighbours of one sign, in both orders in which kernels lay a weight out.
        (Most channels need a third more, where the usual remedy, weights of 7 bits, takes twice.) And a bias must fit
        int32 in steps of s_x s_w, which dead channels need, whose weights are all but zero beside it.
        Returns: (channels,), with the gradient of `scale` where that is what is read.
        """
        needed = []
        if self.pairs:
            pair = largest_pair(x.detach()) / LARGEST_PAIR
            needed.append(pair if self.axis >= 0 else pair.amax())
        for bias, source in zip(biases, self.inputs, strict=False):
            if source.quantizing:
                largest = bias.detach().abs() / (source.scale.detach() * LARGEST_BIAS)
                needed.append(largest.view(-1, len(self.scale)).amax(0))
        scale: Tensor = self.scale
        for least in needed:
            scale = torch.where(scale >= least, scale, least)
        if needed:
            self.read = scale.detach()
        return scale

    def watch(self, observer: str) -> None:
        """Observe from now on, with one of OBSERVERS, and round nothing; unless the range is guaranteed."""
        self.disable_fake_quant()
        if self.doubted or not self.guaranteed:
            observer = "minmax" if self.guaranteed else observer
            found = OBSERVERS[observer](quant_min=self.quant_min, quant_max=self.quant_max, limits=self.known)
            self.observer = found.to(self.scale.device)
            self.enable_observer()

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """scale and zero_point as the observer would set them now."""
        if self.observer is None:
            return self.scale.detach(), self.zero_point
        scale, zero_point = self.observer.calculate_qparams()
        if self.signed and bool((zero_point != 0).any()):  # torch.ao's observers are affine unless told otherwise
            low, high = ((end - zero_point) * scale for end in (self.quant_min, self.quant_max))
            scale, zero_point = symmetric_qparams(low, high, self.quant_min, self.quant_max)
        return scale.view(1).float(), zero_point.view(1).int()

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def calibrate(self) -> None:
        """Freeze the range at what was observed: set scale and zero point, forget what was seen, round from now on.

        A range that a clamp guarantees stays, if what was observed covers more than `NEAR` of it.
        """
        scale, zero_point = self.calculate_qparams()
        if not self.guaranteed or bool((scale < NEAR * self.scale).all()):
            self.set_qparams(scale, zero_point)
            self.guaranteed = False
        self.disable_observer()
        self.observer = None
        self.enable_fake_quant()

    def set_range(self, low: float, high: float) -> None:
        """Quantize [low, high], as far as values can lie there (per tensor)."""
        ends = [torch.tensor([min(max(v, self.known[0]), self.known[1])]) for v in (low, high)]
        self.set_qparams(*grid_of(self.quant_min)(ends[0], ends[1], self.quant_min, self.quant_max))

    def fit_weight(self, weight: Tensor, search: bool = True) -> None:
        """Set the grid to a weight: with the least error (p = 2.4), or with `search=False` from its least to its
        greatest value.
        """
        grid = grid_of(self.quant_min)
        rows = weight.detach().transpose(0, self.axis).flatten(1) if self.axis >= 0 else weight.detach().reshape(1, -1)
        low, high = rows.amin(1), rows.amax(1)
        if search:
            low, high = search_range(rows, low, high, self.quant_min, self.quant_max, grid)
        self.set_qparams(*grid(low, high, self.quant_min, self.quant_max))
        with torch.no_grad():
            self.scale.copy_(self.step(weight))

    def limits(self) -> tuple[float, float]:
        """The least and the greatest value the grid holds (per tensor)."""
        scale, zero_point = self.scale.detach()[0].item(), int(self.zero_point[0])
        return (self.quant_min - zero_point) * scale, (self.quant_max - zero_point) * scale

    def extra_repr(self) -> str:
        grid = "per_channel" if self.axis >= 0 else "per_tensor"
        return f"bits={self.bits}, {grid}, quant_min={self.quant_min}, quant_max={self.quant_max}"


def largest_pair(weight: Tensor) -> Tensor:
    """Per output channel, the largest sum of two neighbours of one sign: along (C, H, W) or (H, W, C). (O, ...) ->
    (O,).
    """
    orders = [weight.flatten(1)] + ([weight.movedim(1, -1).flatten(1)] if weight.dim() > 2 else [])
    parts = [F.pad(part, (0, 1)) for rows in orders for part in (rows.clamp(min=0), (-rows).clamp(min=0))]
    return torch.stack([(p[:, 1:] + p[:, :-1]).amax(1) for p in parts]).amax(0)


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
        step = activation.scale.detach() * (weight.scale.detach() if weight.read is None else weight.read)
        step = step.repeat(len(bias) // len(step))  # a grouped transposed convolution shares scales between groups
        return bias + ((bias / step).round() * step - bias).detach()
