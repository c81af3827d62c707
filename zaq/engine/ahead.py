"""What a run has before it: which stages, and about how much work is in each. It is for progress alone."""

from collections.abc import Sequence

import torch

from zaq.engine.progress import Planned
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.quant.student import Student

__all__ = ["ahead"]


def ahead(stages: Sequence[Stage], task: Task) -> list[Planned]:
    """The stages that the report will have, in their order, with their work in forward passes of a batch. A stage asks
    a state what it has to do: it gets one with as many images as there will be, of nothing.
    """
    counts = [count for stage in stages if isinstance(count := getattr(stage, "count", 0), int)]
    images, samples = (torch.empty(1).expand(n, *task.card.input) for n in (max(*counts, task.few), task.few))
    rounded = Student(task.teacher, task.qconfig, task.card, search=False, unlike=task.unlike)
    state = State(task, images=images, samples=samples, _student=rounded)
    return [Planned(s.name, s.cost * _steps(s, state)) for s in stages if s.recorded and s.applies(state)]


def _steps(stage: Stage, state: State) -> int:
    try:
        return stage.length(state)
    except (AttributeError, AssertionError):  # it depends on what a stage before it makes
        return stage.steps
