"""Data-Free Quantization through weight equalization and bias correction (Nagel, van Baalen, Blankevoort, Welling; ICCV
2019).

No image at all: channels are equalized over the whole graph, high biases absorbed, activation ranges read off batch
norm's statistics, beta +- 6 gamma, and the bias that rounding puts into each layer is taken back. Made for one scale a
weight: `--weights per_tensor_affine` is the paper's own setting.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch.fx import GraphModule

from zaq.compute.devices import CPU
from zaq.config.constants import Amount, Count, named
from zaq.engine.journal import Journal
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.ir.move import on
from zaq.methods.base import Method
from zaq.methods.zeroq import Distil
from zaq.passes.absorb import absorb, absorb_constants
from zaq.passes.equalize import equalize, relax_relu6
from zaq.stages.bias import CorrectBiases
from zaq.stages.calibrate import Noise
from zaq.stages.rewrite import Rewrite
from zaq.stats.moments import moments

__all__ = ["DFQ"]

Correction = Annotated[str, named("bias_correction", ("analytic", "empirical", "none"))]


@dataclass(frozen=True, kw_only=True)
class Ranges(Stage):
    """Activation ranges: beta +- so many gamma where batch norm knows, from noise elsewhere."""

    name: str = "ranges"
    deviations: Amount = 6.0

    after_ctrl_c: ClassVar[str] = "run"

    def once(self, state: State, journal: Journal) -> None:
        student, known, images = state.student, moments(on(state.task.teacher, CPU), state.task.card), state.images
        assert images is not None
        placed = student.placement
        unknown = [n for n, q in placed.activations.items() if placed.tensors[n] not in known and not q.guaranteed]
        with student.watching("minmax"), torch.no_grad():
            student(images.to(state.task.device))
        for name, quantizer in placed.activations.items():
            if placed.tensors[name] in known and not quantizer.guaranteed:
                low, high = known[placed.tensors[name]].reach(self.deviations)
                quantizer.set_range(float(low.min()), float(high.max()))
        student.settle()
        if unknown:
            journal.notes.append(f"no statistics reach {', '.join(unknown)}: ranges from noise")


@dataclass(frozen=True)
class DFQ(Method):
    """The paper's constants. Exact by default: ReLU6 stays, with a clip for each channel."""

    constants: bool = True  # channels that training switched off must not set anybody's range (not in the paper)
    equalize: bool = True
    iterations: Count = 20
    relu6_to_relu: bool = False  # the paper's; on networks that live on their clips it costs many points
    absorb: bool = True
    absorb_deviations: Amount = 3.0
    range_deviations: Amount = 6.0  # activation ranges: beta +- 6 gamma
    bias_correction: Correction = "analytic"  # analytic, empirical (on a batch of ZeroQ's images), none
    search: bool = False  # True: weight grids of the least error; the paper takes the whole range

    name: ClassVar[str] = "dfq"
    pictures: ClassVar[bool] = False
    parts: ClassVar[tuple[type[Stage], ...]] = (Rewrite, Ranges, CorrectBiases)

    def stages(self, task: Task) -> list[Stage]:
        """Rewrite the teacher, read ranges off batch norm, correct biases."""

        def equalized(graph: GraphModule) -> tuple[GraphModule, int, list[str]]:
            graph, skipped = equalize(graph, self.iterations)
            return graph, self.iterations, skipped

        def relaxed(graph: GraphModule) -> tuple[GraphModule, int, list[str]]:
            return relax_relu6(graph), 1, ["ReLU6 became ReLU, which changes the float model itself"]

        rewrites: list[tuple[bool, Stage]] = [
            (self.relu6_to_relu, Rewrite(name="relu6", rewrite=relaxed)),
            (self.constants, Rewrite(name="constants", rewrite=lambda g: (*absorb_constants(g), []))),
            (self.equalize, Rewrite(name="equalize", rewrite=equalized)),
            (self.absorb, Rewrite(name="absorb", rewrite=lambda g: (*absorb(g, self.absorb_deviations), []))),
        ]
        correction: dict[str, list[Stage]] = {
            "analytic": [CorrectBiases(analytic=True, tell=True)],
            "empirical": [Distil(stored_in_bounds=True), CorrectBiases(tell=True)],
            "none": [],
        }
        ranges = [Noise(steps=1, stored=True), Ranges(deviations=self.range_deviations)]
        return [*(stage for wanted, stage in rewrites if wanted), *ranges, *correction[self.bias_correction]]
