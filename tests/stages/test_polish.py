"""Distillation: a step of few images moves ranges and no weights; what it is judged by falls."""

import pytest
import torch
from zoo import calibrated

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.stages.polish import Polish


@pytest.mark.parametrize("enough", [16, 10**6])
def test_a_step_of_few_images_moves_no_weights(enough: int) -> None:
    state, journal = calibrated("residual"), Journal()
    before = state.student.snapshot()
    run_stages([Polish(steps=20, enough=enough)], state, journal)
    assert journal.records[0].kept and (journal.records[0].loss_after or 1) < (journal.records[0].loss_before or 0)
    placed, now = state.student.placement, state.student.module.state_dict()
    assert all(torch.equal(now[name], before[name]) == (enough > 16) for name in placed.weights)
    learned = [q for q in placed.activations.values() if not q.guaranteed]
    assert learned and all(q.scale.grad is not None for q in learned), "their ranges do"


def test_images_are_drawn_anew_where_pixels_were_not_moved() -> None:
    state, drawn = calibrated("residual"), []

    class Source:
        def draw(self, count: int, unpainted: float) -> torch.Tensor:
            drawn.append((count, unpainted))
            return torch.randn(count, *state.task.card.input)

    state.generator = Source()
    run_stages([Polish(steps=3, drawn=True, unpainted=0.25)], state, Journal())
    assert drawn == [(state.task.batch, 0.25)] * 3
    run_stages([Polish(steps=3)], state, Journal())
    assert len(drawn) == 3
