"""Data-Free Quantization through weight equalization and bias correction (Nagel, van Baalen, Blankevoort, Welling; ICCV
2019).

No image at all: channels are equalized over the whole graph, high biases absorbed, activation ranges read off batch
norm's statistics, beta +- 6 gamma, and the bias that rounding puts into each layer is taken back. Made for one scale a
weight: `--weights per_tensor_affine` is the paper's own setting.
"""

from dataclasses import dataclass

import torch

from zaq.errors import BitsError
from zaq.methods.job import Job, Stage
from zaq.methods.zeroq import ZeroQ
from zaq.passes.absorb import absorb, absorb_constants
from zaq.passes.equalize import equalize, relax_relu6
from zaq.quant.placement import make_room
from zaq.stats.bias import correct_analytically, correct_empirically
from zaq.stats.moments import Clipped, moments

__all__ = ["DFQ"]


@dataclass(frozen=True)
class DFQ:
    """The paper's constants. Exact by default: ReLU6 stays, with a clip for each channel."""

    constants: bool = True  # channels that training switched off must not set anybody's range (not in the paper)
    equalize: bool = True
    iterations: int = 20
    relu6_to_relu: bool = False  # the paper's; on networks that live on their clips it costs many points
    absorb: bool = True
    absorb_deviations: float = 3.0
    range_deviations: float = 6.0  # activation ranges: beta +- 6 gamma
    bias_correction: str = "analytic"  # analytic, empirical (on a batch of ZeroQ's images), none
    search: bool = False  # True: weight grids of the least error; the paper takes the whole range

    def __post_init__(self) -> None:
        if self.bias_correction not in ("analytic", "empirical", "none"):
            raise BitsError(f"bias_correction: {self.bias_correction!r} is not analytic, empirical or none.")

    def __call__(self, job: Job) -> None:
        self._prepare(job)
        job.fit_weights(self.search)
        known = moments(job.teacher, job.card)
        self._set_ranges(job, known)
        job.samples = job.noise()
        if self.bias_correction == "analytic":
            layers = correct_analytically(job.teacher, job.student, job.placement, known)
            job.stages.append(Stage("bias correction", layers, note="analytic"))
        elif self.bias_correction == "empirical":
            job.samples = job.in_bounds(ZeroQ().images(job))
            layers = correct_empirically(job.teacher, job.student, job.samples)
            job.stages.append(Stage("bias correction", layers, note="empirical"))
        make_room(job.student)

    def _prepare(self, job: Job) -> None:
        """Rewrite the teacher, and go on with it."""
        graph = job.teacher
        if self.relu6_to_relu:
            graph = relax_relu6(graph)
            job.notes.append("ReLU6 became ReLU, which changes the float model itself")
        if self.constants:
            graph, off = absorb_constants(graph)
            job.stages.append(Stage("constants", off))
        if self.equalize:
            graph, skipped = equalize(graph, self.iterations)
            job.stages.append(Stage("equalize", self.iterations))
            job.notes += skipped
        if self.absorb:
            graph, moved = absorb(graph, self.absorb_deviations)
            job.stages.append(Stage("absorb", moved))
        job.use(graph)

    def _set_ranges(self, job: Job, known: dict[str, Clipped]) -> None:
        tensors = job.placement.tensors
        unknown = [
            name for name, q in job.placement.activations.items() if tensors[name] not in known and not q.guaranteed
        ]
        with job.calibrating("minmax"), torch.no_grad():
            job.student(job.noise())
        for name, quantizer in job.placement.activations.items():
            if tensors[name] in known and not quantizer.guaranteed:
                low, high = known[tensors[name]].reach(self.range_deviations)
                quantizer.set_range(float(low.min()), float(high.max()))
        make_room(job.student)
        job.stages.append(Stage("ranges", len(job.placement.activations) - len(unknown)))
        if unknown:
            job.notes.append(f"no statistics reach {', '.join(unknown)}: ranges from noise")
