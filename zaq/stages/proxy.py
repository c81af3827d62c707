"""Photographs of anything in the place of drawn images (`zaq quantize --proxy`): moved to the teacher's statistics with
their content kept.

    min over G, F of  L_G(G(x)) + lambda ||F(G(x)) - x||_1

CycleGAN's constraint (Zhu et al. 2017, eq. 2) without its discriminators: what the teacher's batch norms remember, and
that it is sure of a class, say here what images should be (L_G, `stages.synthesis`). No label is needed. Photographs
are real images: whoever hands any to `zaq.api.quantize_graph` has a run that is marked as not data-free.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import BitsError, DataError
from zaq.ir.move import onto
from zaq.stages.synthesis import Draw, Synthesize, moves
from zaq.synth.adapter import Adapter, Photographs

__all__ = ["Adapt", "Move", "proxied"]

CYCLE = 10.0  # CycleGAN's lambda


@dataclass(frozen=True, kw_only=True)
class Adapt(Synthesize):
    """Learn to move photographs, for `steps` batches, and the way back. Its constants are those of the synthesis."""

    name: str = "adapt"
    photographs: Photographs

    def start(self, state: State, journal: Journal) -> Loop:
        task = state.task
        state.generator = onto(Adapter(task.card, self.width, self.photographs.pixels), task.device)
        return self.learning(state.generator, task)

    def wanted(self, outputs: list[Tensor], labels: Tensor | None) -> Tensor | None:
        """The class that an image is taken for: it is to be taken for that one surely, whichever it is."""
        classifies = len(outputs) == 1 and outputs[0].dim() == 2  # as `Task.classes` has it
        return outputs[0].detach().argmax(1) if classifies else None


@dataclass(frozen=True, kw_only=True)
class Move(Draw):
    """Move each photograph once, and if they are too few all of them again, mirrored: to learn on."""

    name: str = "move"

    def once(self, state: State, journal: Journal) -> None:
        if (there := len(state.generator.pixels)) < self.count:
            journal.notes.append(
                f"{there} photographs are moved for the {self.count} images that are learned on: each is taken again, "
                "mirrored every second time"
            )
        super().once(state, journal)

    def drawn(self, state: State) -> Iterator[Tensor]:
        return map(state.generator.moved, torch.arange(self.count).split(state.task.batch))


def proxied(stages: Sequence[Stage], photographs: Photographs, task: Task) -> list[Stage]:
    """The stages of the recipe, with photographs that are moved in the place of images that are drawn and refined to
    learn on. What is drawn to be held out stays, so that runs with and without photographs are judged by the same.

    Raises BitsError where there is nothing to move them to, or a generator was asked for that has no canvas; DataError
    for fewer photographs than a batch: its statistics are to be those of different images.
    """
    if not moves(task):
        raise BitsError(
            "--proxy: the model has no batch norm that remembers what its images were like, and there is nothing that "
            "photographs could be moved to. Leave --proxy out."
        )
    if len(photographs.pixels) < task.batch:
        raise DataError(
            f"--proxy: {photographs.place} has {len(photographs.pixels)} images, and {task.batch} are the least, a "
            "batch of different ones; add some, of anything."
        )
    making = [i for i, stage in enumerate(stages) if {"generator", "images"} & set(stage.makes())]
    (drawing,) = (stages[i] for i in making if isinstance(stages[i], Synthesize))
    (draw,) = (stage for i in making if isinstance(stage := stages[i], Draw))
    assert isinstance(drawing, Synthesize)
    if drawing.generator != "painter":
        raise BitsError(f"--proxy: photographs are painted over, and -s generator={drawing.generator} is no painter.")
    constants = {f.name: getattr(drawing, f.name) for f in fields(drawing)} | {"name": Adapt.name}
    if drawing.cycle is None:
        constants["cycle"] = CYCLE
    first = making[0]
    moving = [Adapt(photographs=photographs, **constants), Move(count=draw.count)]
    return [*stages[:first], *moving, *(s for i, s in enumerate(stages) if i > first and i not in making)]
