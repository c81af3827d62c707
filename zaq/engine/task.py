"""What is asked of a method: one network to quantize, at these bits, with this effort and seed."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.ir.nodes import input_node, output_nodes, shape_of
from zaq.ir.taps import taps
from zaq.passes.fold import BatchNormStats

__all__ = ["NO_BATCH_NORM", "Task"]

NO_BATCH_NORM = (
    "no batch norm folds into a layer here (ONNX files mostly come with it folded): zeroq, gdfq, and the ranges of dfq "
    "and aciq have nothing to hold on to; the default method and zaq go by what excites the network, and by its classes"
)

PIXELS_A_BATCH = 2**16  # a batch of 64 at 32x32
FEW, FEW_BATCHES = 64, 4  # samples, or batches of them, whichever is more: see `Task.few`


@dataclass(frozen=True)
class Task:
    """What is asked. No data set, by construction.

    teacher: a folded graph, frozen here; it maps images (N, C, H, W) to its outputs.
    search: whether weight grids are those of the least error; a method that fits them itself can do without.
    """

    teacher: GraphModule
    qconfig: QConfig
    card: Card
    effort: str = "default"
    seed: int = 0
    search: bool = True
    batch: int = field(init=False)

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False)
        for value in (*self.teacher.parameters(), *self.teacher.buffers()):
            if value.dim() == 4:  # not of 5, as a table of positions may have
                value.data = value.data.contiguous(memory_format=torch.channels_last)
        pixels = math.prod(self.card.input[1:])
        batch = 2 ** torch.tensor(PIXELS_A_BATCH / pixels).log2().floor().clamp(3, 6)
        object.__setattr__(self, "batch", int(batch))  # a power of two from 8 to 64, so that large images fit

    @property
    def few(self) -> int:
        """How many samples are held out, and how many biases are corrected on: all of them are in memory at once."""
        return max(FEW, FEW_BATCHES * self.batch)

    @cached_property
    def taps(self) -> list[str]:
        """The names of the teacher's feature maps that students are compared at."""
        return taps(self.teacher)

    @cached_property
    def classes(self) -> int | None:
        """The number of classes, if the teacher is a classifier: one output (N, K)."""
        outputs = [shape_of(n) for n in output_nodes(self.teacher)]
        return outputs[0][0] if len(outputs) == 1 and outputs[0] is not None and len(outputs[0]) == 1 else None

    def batch_norms(self) -> dict[str, BatchNormStats]:
        """What folded batch norms knew: layer name -> statistics of its output on the training data."""
        return {n.name: n.meta["bn"] for n in self.teacher.graph.nodes if "bn" in n.meta}

    def noise(self, count: int | None = None) -> Tensor:
        """Standard normal images where pixels lie, (`count` or a batch, C, H, W): what tools that ask for data are fed
        without any. Drawn from torch's random state, which the runner sets for each stage."""
        images = torch.randn(self.batch if count is None else count, *self.card.input)
        if "stored" in input_node(self.teacher).meta:  # bytes, which standard normal numbers would leave black
            low, high = self.card.bounds()
            images = (low + high + (high - low) / 2 * images) / 2
        return self.in_bounds(images)

    def in_bounds(self, images: Tensor) -> Tensor:
        """Images as a file stores them: no pixel beyond what one can be."""
        low, high = self.card.bounds()
        return images.maximum(low).minimum(high)
