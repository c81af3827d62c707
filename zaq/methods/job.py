"""What a method is given: teacher, student, and what is known of the input. No data set, by construction."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.progress import Progress
from zaq.ir.nodes import attribute, output_nodes, shape_of
from zaq.ir.taps import taps, with_taps
from zaq.passes.fold import BatchNormStats
from zaq.quant.placement import Placement, make_room, place

__all__ = ["NO_BATCH_NORM", "Job", "Log", "Stage"]

NO_BATCH_NORM = (
    "no batch norm folds into a layer here (ONNX files mostly come with it folded): zeroq, gdfq, and the ranges of dfq and aciq have "
    "nothing to hold on to; the default method and zaq go by what excites the network, and by its classes"
)

PIXELS_A_BATCH = 2**16  # a batch of 64 at 32x32
FEW, FEW_BATCHES = 64, 4  # samples, or batches of them, whichever is more: see `Job.few`


@dataclass
class Log:
    """Losses step by step, in memory and, if there is a path, in a file of JSON lines as they come."""

    path: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, stage: str, step: int, **values: float) -> None:
        row = {"stage": stage, "step": step, **values}
        self.rows.append(row)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


@dataclass
class Stage:
    """What one stage of a method did: the held-out synthetic loss before and after, and whether it was kept."""

    name: str
    steps: int
    loss_before: float | None = None
    loss_after: float | None = None
    kept: bool = True
    note: str = ""


@dataclass
class Job:
    """One model to quantize. The student is trained in place; `stages`, `samples` and `notes` go into the report."""

    teacher: GraphModule  # folded, frozen
    qconfig: QConfig
    card: Card
    effort: str = "default"
    search: bool = True  # for weight grids of the least error; a method that fits them itself can do without
    progress: Progress = field(default_factory=Progress)
    log: Log = field(default_factory=Log)
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    frontier: list[tuple[int, float]] = field(default_factory=list)  # mixed precision: (bytes, least sensitivity)
    samples: Tensor | None = None
    interrupted: bool = False
    student: GraphModule = field(init=False)
    placement: Placement = field(init=False)

    def __post_init__(self) -> None:
        self.use(self.teacher)

    def use(self, teacher: GraphModule, qconfig: QConfig | None = None) -> None:
        """Go on with a teacher that computes the same, or with other bits: the student is placed anew, uncalibrated."""
        self.qconfig = qconfig or self.qconfig
        self.teacher = teacher.requires_grad_(False)
        for value in (*teacher.parameters(), *teacher.buffers()):
            if value.dim() == 4:  # not of 5, as a table of positions may have
                value.data = value.data.contiguous(memory_format=torch.channels_last)
        self.student, self.placement = place(self.teacher, self.qconfig, self.card, self.search)
        self.student.requires_grad_(True)

    @property
    def batch(self) -> int:
        """Samples in a batch, a power of two from 8 to 64, so that large images fit."""
        height, width = self.card.input[1:]
        return int(2 ** torch.tensor(PIXELS_A_BATCH / (height * width)).log2().floor().clamp(3, 6))

    @property
    def few(self) -> int:
        """How many samples are held out, and how many biases are corrected on: all of them are in memory at once."""
        return max(FEW, FEW_BATCHES * self.batch)

    @property
    def taps(self) -> list[str]:
        return taps(self.teacher)

    @property
    def classes(self) -> int | None:
        """The number of classes, if the teacher is a classifier: one output (N, K)."""
        outputs = [shape_of(n) for n in output_nodes(self.teacher)]
        return outputs[0][0] if len(outputs) == 1 and outputs[0] is not None and len(outputs[0]) == 1 else None

    def batch_norms(self) -> dict[str, BatchNormStats]:
        """What folded batch norms knew: layer name -> statistics of its output on the training data."""
        return {n.name: n.meta["bn"] for n in self.teacher.graph.nodes if "bn" in n.meta}

    def tapped(self, student: bool) -> GraphModule:
        """Teacher or student as a module that returns ([outputs], [tapped features])."""
        return with_taps(self.student if student else self.teacher, self.taps)

    @contextmanager
    def calibrating(self, observer: str = "mse") -> Iterator[None]:
        """Inside, activations pass unrounded and are watched by one of OBSERVERS; afterwards their ranges are frozen."""
        for quantizer in self.placement.activations.values():
            quantizer.watch(observer)
        try:
            yield
        finally:
            for quantizer in self.placement.activations.values():
                quantizer.calibrate()
            make_room(self.student)

    def calibrate(self, batches: Iterable[Tensor], count: int, observer: str = "mse") -> None:
        """Freeze the ranges that `count` batches of images (n, C, H, W) cause, as a stage with its progress."""
        with self.calibrating(observer), torch.no_grad():
            for _, batch in zip(self.progress.track("calibrate", count), batches, strict=False):
                self.student(batch)
        self.stages.append(Stage("calibrate", count))

    def noise(self, count: int | None = None) -> Tensor:
        """Standard normal images where pixels lie (a batch, or `count`): what tools that ask for data are fed without
        any.
        """
        return self.in_bounds(torch.randn(self.batch if count is None else count, *self.card.input))

    def in_bounds(self, images: Tensor) -> Tensor:
        """Images as a file stores them: no pixel beyond what one can be."""
        low, high = self.card.bounds()
        return images.maximum(low).minimum(high)

    def fit_weights(self, search: bool) -> None:
        """Set every weight's grid anew: see `FakeQuantize.fit_weight`. A student has them searched."""
        for name, quantizer in self.placement.weights.items():
            quantizer.fit_weight(attribute(self.student, name), search)
