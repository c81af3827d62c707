"""Passes over the teacher as stages: it computes the same afterwards, and the student is placed anew. They run on the
CPU, in double precision, which not every device has: so they do the same everywhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule

from zaq.compute.devices import CPU
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.ir.move import on, onto
from zaq.passes.even import even, free_to_scale
from zaq.synth.drawings import drawings
from zaq.synth.leaves import leaves

__all__ = ["Even", "Rewrite"]


@dataclass(frozen=True, kw_only=True)
class Rewrite(Stage):
    """Go on with a teacher that a pass has rewritten; `rewrite` returns it, how much it did, and what it left alone."""

    rewrite: Callable[[GraphModule], tuple[GraphModule, int, list[str]]]

    def start(self, state: State, journal: Journal) -> Loop:
        def one(_: int) -> None:
            graph, count, skipped = self.rewrite(on(state.task.teacher, CPU))
            state.rewrite(onto(graph, state.task.device))
            journal.notes.extend(skipped)
            counted.append(count)

        counted: list[int] = []
        return Loop(one, finish=lambda: setattr(journal.records[-1], "steps", sum(counted)))


@dataclass(frozen=True, kw_only=True)
class Even(Stage):
    """Give channels alike ranges where that costs nothing (`passes.even`), as dead leaves and drawings show them. It is
    not free where a whole weight has one scale.
    """

    name: str = "even channels"

    recorded: ClassVar[bool] = False
    after_ctrl_c: ClassVar[str] = "run"

    def applies(self, state: State) -> bool:
        own_scales = "tensor" not in state.task.qconfig.weights
        return self.steps > 0 and own_scales and any(map(free_to_scale, state.task.teacher.graph.nodes))

    def once(self, state: State, journal: Journal) -> None:
        task, half = state.task, state.task.batch // 2
        graph, count = even(on(task.teacher, CPU), torch.cat([leaves(half, task.card), drawings(half, task.card)]))
        if count:
            journal.notes.append(f"the channels of {count} tensors have alike ranges now, which costs no weight")
            state.rewrite(onto(graph, task.device))
