"""What a run has before it: which stages, and about how much work is in each. It is for progress alone."""

import time
from collections.abc import Sequence

import torch

from zaq.engine.progress import Planned
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.quant.student import Student

__all__ = ["ahead"]


def ahead(stages: Sequence[Stage], task: Task) -> list[Planned]:
    """The stages that the report will have, in their order, with their work in forward passes of a batch, one of which
    is timed. A stage asks a state what it has to do: it gets one with as many images as there will be, of nothing.
    """
    counts = [count for stage in stages if isinstance(count := getattr(stage, "count", 0), int)]
    images, samples = (torch.empty(1).expand(n, *task.card.input) for n in (max(*counts, task.few), task.few))
    rounded = Student(task.teacher, task.qconfig, task.card, search=False, unlike=task.unlike)
    state = State(task, images=images, samples=samples, _student=rounded)
    each, found = _seconds(task), list[Planned]()
    for stage in stages:
        if stage.recorded and stage.applies(state):
            work = stage.cost * _steps(stage, state)
            found.append(Planned(stage.name, work, each * work))
    return found


@torch.no_grad()
def _seconds(task: Task) -> float:
    """What a forward pass of a batch takes; of grey images, so that no random number is drawn."""
    grey = torch.full((task.batch, *task.card.input), 0.5, device=task.device)
    network = task.teacher_at()
    network(grey)
    begun = time.perf_counter()
    network(grey)
    return time.perf_counter() - begun


def _steps(stage: Stage, state: State) -> int:
    try:
        return stage.length(state)
    except (AttributeError, AssertionError):  # it depends on what a stage before it makes
        return stage.steps
