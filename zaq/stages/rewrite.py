"""Passes over the teacher as stages: it computes the same afterwards, and the student is placed anew."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule

from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.passes.even import even, is_depthwise
from zaq.synth.drawings import drawings
from zaq.synth.leaves import dead_leaves

__all__ = ["Even", "Rewrite"]


@dataclass(frozen=True, kw_only=True)
class Rewrite(Stage):
    """Go on with a teacher that a pass has rewritten; `rewrite` returns it, how much it did, and what it left alone."""

    rewrite: Callable[[GraphModule], tuple[GraphModule, int, list[str]]]

    def start(self, state: State, journal: Journal) -> Loop:
        def one(_: int) -> None:
            graph, count, skipped = self.rewrite(state.task.teacher)
            state.rewrite(graph)
            journal.notes.extend(skipped)
            counted.append(count)

        counted: list[int] = []
        return Loop(one, finish=lambda: setattr(journal.records[-1], "steps", sum(counted)))


@dataclass(frozen=True, kw_only=True)
class Even(Stage):
    """Give the channels in front of depthwise convolutions alike ranges (`passes.even`), as dead leaves and drawings
    show them; of a target with one scale for a whole weight nothing, as that is not free there.
    """

    name: str = "even channels"

    recorded: ClassVar[bool] = False
    after_ctrl_c: ClassVar[str] = "run"

    def applies(self, state: State) -> bool:
        task = state.task
        return (
            self.steps > 0 and "tensor" not in task.qconfig.weights and any(map(is_depthwise, task.teacher.graph.nodes))
        )

    def once(self, state: State, journal: Journal) -> None:
        task = state.task
        leaves = task.card.in_bounds(task.card.images(dead_leaves(task.batch // 2, task.card.input)))
        graph, count = even(task.teacher, torch.cat([leaves, drawings(task.batch // 2, task.card)]))
        if count:
            journal.notes.append(
                f"{count} tensors in front of depthwise convolutions have channels of alike ranges now"
            )
            state.rewrite(graph)
