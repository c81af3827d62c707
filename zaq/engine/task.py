"""What is asked of a method: one network to quantize, at these bits, with this effort and seed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.config.memory import allowed
from zaq.engine.work import Network, Work
from zaq.errors import BitsError
from zaq.ir.move import device_of
from zaq.ir.nodes import output_nodes, shape_of
from zaq.ir.ops import CONVS
from zaq.ir.taps import taps, with_taps
from zaq.passes.fold import BatchNormStats
from zaq.quant.alike import unlike_channels
from zaq.quant.edges import weighted_layers

__all__ = ["NO_BATCH_NORM", "Task"]

NO_BATCH_NORM = (
    "no batch norm folds into a layer here (ONNX files mostly come with it folded): zeroq, gdfq, and the ranges of dfq "
    "and aciq have nothing to hold on to; the default method and zaq go by what excites the network, and by its classes"
)

PIXELS_A_BATCH = 2**16  # a batch of 64 at 32x32
UNLIKE_ON = 8  # images that ranges of channels are seen on
FEW, FEW_BATCHES = 64, 4  # samples, or batches of them, whichever is more: see `Task.few`


@dataclass(frozen=True)
class Task:
    """What is asked. No data set, by construction.

    teacher: a folded graph, frozen here; it maps images (N, C, H, W) to its outputs.
    work: where and how networks are run.
    search: whether weight grids are those of the least error; a method that fits them itself can do without.
    memory: bytes that may be kept beside a batch's own work; what is more lies in files (`engine.store`). By default
        half of what is free.

    Raises BitsError for less memory than a batch of images takes.
    """

    teacher: GraphModule
    qconfig: QConfig
    card: Card
    effort: str = "default"
    seed: int = 0
    search: bool = True
    work: Work = field(default_factory=Work)
    memory: int = field(default_factory=allowed)
    batch: int = 0  # images at a time; by default as many as fit, by their size

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False)
        for value in (*self.teacher.parameters(), *self.teacher.buffers()):
            if value.dim() == 4:  # not of 5, as a table of positions may have
                value.data = value.data.contiguous(memory_format=torch.channels_last)
        pixels = math.prod(self.card.input[1:])
        batch = 2 ** torch.tensor(PIXELS_A_BATCH / pixels).log2().floor().clamp(3, 6)
        object.__setattr__(self, "batch", self.batch or int(batch))  # a power of two from 8 to 64: large images fit
        least = 4 * self.batch * math.prod(self.card.input)
        if self.memory < least:
            raise BitsError(
                f"memory: {self.memory} bytes are less than a batch of {self.batch} images takes; "
                f"{-(-least // 2**20)}M is the least."
            )

    @property
    def device(self) -> torch.device:
        """Where the teacher is: there its student learns, and whatever a stage makes goes there."""
        return device_of(self.teacher)

    @property
    def few(self) -> int:
        """How many samples are held out, and how many biases are corrected on."""
        return max(FEW, FEW_BATCHES * self.batch)

    @cached_property
    def taps(self) -> list[str]:
        """The names of the teacher's feature maps that students are compared at."""
        return taps(self.teacher)

    def teacher_at(
        self, names: Sequence[str] = (), teacher: GraphModule | None = None, of: Callable[[Tensor], Any] | None = None
    ) -> Network:
        """The teacher, or another graph of it, as a network that returns ([outputs], [features at these nodes]); or
        what `of` makes of each feature, of the whole batch."""
        graph, names = teacher or self.teacher, list(names)
        if of is None or self.work.plain:
            return self.work.network(with_taps(graph, names, of))
        network = self.work.network(with_taps(graph, names))

        def run(x: Tensor) -> tuple[list[Tensor], list[Any]]:
            outputs, features = network(x)
            return outputs, [of(feature) for feature in features]

        return run

    @cached_property
    def classes(self) -> int | None:
        """The number of classes, if the teacher is a classifier: one output (N, K)."""
        outputs = [shape_of(n) for n in output_nodes(self.teacher)]
        return outputs[0][0] if len(outputs) == 1 and outputs[0] is not None and len(outputs[0]) == 1 else None

    @cached_property
    def unlike(self) -> frozenset[str]:
        """What leaves the graph with channels too unlike for one scale, by node: as seen on noise, the same for every
        seed."""
        with drawing(0):
            return unlike_channels(self.teacher, self.card, self.noise(UNLIKE_ON))

    def batch_norms(self) -> dict[str, BatchNormStats]:
        """What folded batch norms knew: layer name -> statistics of its output on the training data."""
        return {n.name: n.meta["bn"] for n in self.teacher.graph.nodes if "bn" in n.meta}

    @cached_property
    def remembers(self) -> bool:
        """Whether batch norms tell what the teacher's own images were like: those of half of its convolutions. What
        was folded before, as into most ONNX files, tells nothing.
        """
        known, there = self.batch_norms(), [n for n in weighted_layers(self.teacher) if n.target in CONVS]
        return 2 * sum(n.name in known for n in there) >= max(len(there), 1)

    def noise(self, count: int | None = None) -> Tensor:
        """Normal images with the mean and deviation of photographs, (`count` or a batch, C, H, W): what tools that ask
        for data are fed without any. Where the card says no more than which pixels there can be, every second image has
        these evenly. Drawn from torch's random state, which the runner sets for each stage."""
        images = self.card.images(torch.randn(self.batch if count is None else count, *self.card.input))
        if not self.card.of_data:
            low, high = self.card.bounds()
            images[1::2] = low + (high - low) * torch.rand(images[1::2].shape)
        return self.card.in_bounds(images).to(self.device)
