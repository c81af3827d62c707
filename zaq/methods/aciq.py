"""ACIQ: post-training 4-bit quantization (Banner, Nahshan, Soudry; NeurIPS 2019).

Activations are clipped where clipping and rounding together cost least, in closed form for a Laplace or a normal
distribution (`quant.aciq`); a tensor's bits are shared out among the channels of a weight; and a rounded channel gets
back the deviation and the mean that rounding took from it. No training, and no image: statistics come from batch norm.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from zaq.compute.devices import CPU
from zaq.config.constants import named
from zaq.engine.journal import Journal
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.ir.move import on
from zaq.ir.nodes import set_parameter
from zaq.methods.base import Method
from zaq.methods.zeroq import Distil
from zaq.quant.aciq import allocate_bits, clip_range
from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.op import along
from zaq.quant.qparams import grid_of, quant_range
from zaq.stages.bias import CorrectBiases
from zaq.stages.calibrate import Noise
from zaq.stats.moments import Clipped, moments

__all__ = ["ACIQ"]

Distribution = Annotated[str, named("distribution", ("laplace", "gauss"))]
Statistics = Annotated[str, named("statistics", ("batch_norm", "synthetic"))]

LEAST, MOST = 2, 8  # bits of a weight's channel


@dataclass(frozen=True, kw_only=True)
class Clip(Stage):
    """Every range where clipping and rounding cost least together: from images, or from what batch norm knows."""

    name: str = "ranges"
    distribution: Distribution = "laplace"
    synthetic: bool = False  # from images alone

    after_ctrl_c: ClassVar[str] = "run"

    def once(self, state: State, journal: Journal) -> None:
        student, images = state.student, state.images
        assert images is not None
        known = {} if self.synthetic else moments(on(state.task.teacher, CPU), state.task.card)
        with student.watching(self.distribution), torch.no_grad():
            for part in images.split(state.task.batch):
                student(part.to(state.task.device))
        for name, quantizer in student.placement.activations.items():
            tensor = student.placement.tensors[name]
            if tensor in known and not quantizer.guaranteed:
                quantizer.set_range(*self._range(known[tensor], quantizer))

    def _range(self, known: Clipped, quantizer: FakeQuantize) -> tuple[float, float]:
        """The range of a tensor whose channels are distributed as known: their mixture's mean and deviation count."""
        mean = known.mean.mean()
        std = float((known.variance.mean() + known.mean.var(unbiased=False)).sqrt())
        deviation = std * math.sqrt(2 / math.pi) if self.distribution == "laplace" else std
        low, high = known.reach(6.0)
        ends = float(low.min()), float(high.max())
        return clip_range(float(mean), deviation, quantizer.bits, *ends, self.distribution, quantizer.signed)


@dataclass(frozen=True, kw_only=True)
class Channels(Stage):
    """Weights: bits shared out among a tensor's channels, and each channel's deviation and mean given back."""

    name: str = "channels"
    allocate: bool = True
    correct: bool = True

    def once(self, state: State, journal: Journal) -> None:
        student = state.student
        student.fit_weights(search=False)
        for name, quantizer in student.placement.weights.items():
            self._quantize_weight(state, name, quantizer)
        if self.allocate:
            journal.notes.append("weights have their bits on average: 2 to 8 a channel")

    @torch.no_grad()
    def _quantize_weight(self, state: State, name: str, quantizer: FakeQuantize) -> None:
        weight = state.student.weight(name)
        if quantizer.axis < 0:
            return
        rows = weight.transpose(0, quantizer.axis).flatten(1)
        if self.allocate:
            grid = grid_of(quantizer.quant_min)
            bits = allocate_bits(rows.std(1), quantizer.bits, LEAST, MOST)
            for width in bits.unique().tolist():
                here = bits == width
                scale, zero_point = grid(rows[here].amin(1), rows[here].amax(1), *quant_range(width, quantizer.signed))
                quantizer.scale[here], quantizer.zero_point[here] = scale, zero_point
            quantizer.quant_min, quantizer.quant_max = quant_range(MOST, quantizer.signed)
        if self.correct:
            rounded = quantizer.on_grid(weight)
            ratio = rows.std(1) / rounded.transpose(0, quantizer.axis).flatten(1).std(1)
            ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
            quantizer.scale.mul_(ratio)
            set_parameter(state.student.module, name, rounded * along(ratio, weight, quantizer.axis))


@dataclass(frozen=True)
class ACIQ(Method):
    """The paper's choices. It shares out the bits of activations among channels too,
    which no integer kernel can take."""

    distribution: Distribution = "laplace"  # or gauss
    statistics: Statistics = "batch_norm"  # or synthetic: of one batch of ZeroQ's images
    allocate: bool = True  # bits for each channel of a weight, so many on average
    correct: bool = True  # give channels back their deviation and mean

    name: ClassVar[str] = "aciq"
    pictures: ClassVar[bool] = False
    parts: ClassVar[tuple[type[Stage], ...]] = (Clip, Channels, CorrectBiases)
    searches: ClassVar[bool] = False

    def stages(self, task: Task) -> list[Stage]:
        """Images, clipped ranges, channels, biases."""
        synthetic = self.statistics == "synthetic"
        images: Stage = Distil(stored_in_bounds=True) if synthetic else Noise()
        correction: list[Stage] = [CorrectBiases(analytic=True, mean_only=True)] if self.correct else []
        return [
            images,
            Clip(distribution=self.distribution, synthetic=synthetic),
            Channels(allocate=self.allocate, correct=self.correct),
            *correction,
        ]
