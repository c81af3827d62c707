"""ACIQ: post-training 4-bit quantization (Banner, Nahshan, Soudry; NeurIPS 2019).

Activations are clipped where clipping and rounding together cost least, in closed form for a Laplace or a normal
distribution (`quant.aciq`); a tensor's bits are shared out among the channels of a weight; and a rounded channel gets
back the deviation and the mean that rounding took from it. No training, and no image: statistics come from batch norm.
"""

import math
from dataclasses import dataclass

import torch

from zaq.errors import BitsError, unknown
from zaq.ir.nodes import attribute, set_parameter
from zaq.methods.job import Job, Stage
from zaq.methods.zeroq import ZeroQ
from zaq.quant.aciq import allocate_bits, clip_range
from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.op import along
from zaq.quant.placement import make_room
from zaq.quant.qparams import grid_of, quant_range
from zaq.stats.bias import correct_analytically
from zaq.stats.moments import Clipped, moments

__all__ = ["ACIQ"]

LEAST, MOST = 2, 8  # bits of a weight's channel


@dataclass(frozen=True)
class ACIQ:
    """The paper's choices. It shares out the bits of activations among channels too, which no integer kernel can take."""

    distribution: str = "laplace"  # or gauss
    statistics: str = "batch_norm"  # or synthetic: of one batch of ZeroQ's images
    allocate: bool = True  # bits for each channel of a weight, so many on average
    correct: bool = True  # give channels back their deviation and mean

    def __post_init__(self) -> None:
        for what, name, known in (
            ("distribution", self.distribution, ("laplace", "gauss")),
            ("statistics", self.statistics, ("batch_norm", "synthetic")),
        ):
            if name not in known:
                raise BitsError(f"{what}: " + unknown(what, name, known))

    def __call__(self, job: Job) -> None:
        job.samples = job.noise()
        if self.statistics == "synthetic":
            job.samples = job.in_bounds(ZeroQ().images(job))
        known = moments(job.teacher, job.card)
        self._set_ranges(job, known if self.statistics == "batch_norm" else {})
        job.fit_weights(search=False)
        for name, quantizer in job.placement.weights.items():
            self._quantize_weight(job, name, quantizer)
        if self.correct:
            layers = correct_analytically(job.teacher, job.student, job.placement, known, mean_only=True)
            job.stages.append(Stage("bias correction", layers))
        if self.allocate:
            job.notes.append("weights have their bits on average: 2 to 8 a channel")
        make_room(job.student)

    def _set_ranges(self, job: Job, known: dict[str, Clipped]) -> None:
        """Every range from synthetic samples; or, where something is known of a tensor, from that."""
        assert job.samples is not None
        with job.calibrating(self.distribution), torch.no_grad():
            for part in job.samples.split(job.batch):
                job.student(part)
        for name, quantizer in job.placement.activations.items():
            tensor = job.placement.tensors[name]
            if tensor in known and not quantizer.guaranteed:
                quantizer.set_range(*self._range(known[tensor], quantizer))
        job.stages.append(Stage("ranges", len(known) or len(job.placement.activations)))

    def _range(self, known: Clipped, quantizer: FakeQuantize) -> tuple[float, float]:
        """The range of a tensor whose channels are distributed as known: their mixture's mean and deviation count."""
        mean = known.mean.mean()
        std = float((known.variance.mean() + known.mean.var(unbiased=False)).sqrt())
        deviation = std * math.sqrt(2 / math.pi) if self.distribution == "laplace" else std
        low, high = known.reach(6.0)
        ends = float(low.min()), float(high.max())
        return clip_range(float(mean), deviation, quantizer.bits, *ends, self.distribution, quantizer.signed)

    @torch.no_grad()
    def _quantize_weight(self, job: Job, name: str, quantizer: FakeQuantize) -> None:
        weight = attribute(job.student, name)
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
            rounded = quantizer(weight)
            ratio = rows.std(1) / rounded.transpose(0, quantizer.axis).flatten(1).std(1)
            ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
            quantizer.scale.mul_(ratio)
            set_parameter(job.student, name, rounded * along(ratio, weight, quantizer.axis))
