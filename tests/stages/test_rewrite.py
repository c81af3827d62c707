"""Passes as stages: the teacher computes the same, the student is placed for it."""

import pytest
import torch
from torch import nn
from zoo import images, state_of

from zaq.config.bits import QConfig
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.ir.capture import trace
from zaq.passes.fold import fold
from zaq.stages.rewrite import Even


def net() -> nn.Module:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
    with torch.no_grad():
        first.weight.mul_(torch.linspace(1, 20, 8).view(-1, 1, 1, 1))
    return nn.Sequential(first, nn.ReLU(), second).eval()


@pytest.mark.parametrize(("weights", "free"), [("per_channel", True), ("per_tensor", False)])
def test_channels_become_even_where_weights_have_a_scale_each(weights: str, free: bool) -> None:
    torch.manual_seed(0)
    graph = fold(trace(net(), images(1)))[0]
    state, journal = state_of(graph, QConfig.parse("w8a8", weights=weights)), Journal()
    before, weight = state.task.teacher, state.student.weight("0.weight")
    run_stages([Even()], state, journal)
    assert (state.task.teacher is not before) == free and any("alike ranges" in n for n in journal.notes) == free
    assert (not torch.equal(state.student.weight("0.weight"), weight)) == free
    torch.testing.assert_close(state.task.teacher(images(4)), before(images(4)), atol=1e-5, rtol=1e-5)
    assert not journal.records, "the report has no line for it"
