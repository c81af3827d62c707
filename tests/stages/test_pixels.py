"""Images out of a teacher: the loss falls, NaN and Ctrl-C keep what is there, the images given stay."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import SHAPE, images, traced

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.journal import Journal
from zaq.engine.progress import Progress
from zaq.engine.runner import run_stages
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.engine.work import Work
from zaq.ir.taps import with_taps
from zaq.passes.fold import fold
from zaq.stages.pixels import Pixels
from zaq.synth.losses import sample_statistics_loss, standard


def square(x: Tensor) -> dict[str, Tensor]:
    return {"square": x.pow(2).sum(), "nothing": 0 * x.sum()}


@dataclass(frozen=True, kw_only=True)
class Distil(Stage):
    """Pixels go down a loss."""

    name: str = "distil"
    loop: Pixels

    def length(self, state: State) -> int:
        return self.loop.length

    def start(self, state: State, journal: Journal) -> Loop:
        return self.loop


def distil(
    start: Tensor,
    losses: Callable[[Tensor], dict[str, Tensor]],
    *given: Any,
    journal: Journal | None = None,
    **more: Any,
) -> Tensor:
    loop = Pixels(start, lambda count: losses, *given, Work(), **more)
    state = State(Task(fold(traced("no_batch_norm"))[0], QConfig.parse("w4a4"), Card(input=SHAPE)))
    run_stages([Distil(loop=loop)], state, journal or Journal())
    return torch.cat(loop.images)


def test_the_statistics_come_closer() -> None:
    folded, _ = fold(traced("residual"))
    stats = {n.name: n.meta["bn"] for n in folded.graph.nodes if "bn" in n.meta}
    teacher, start = with_taps(folded.requires_grad_(False), list(stats)), 0.02 * images(4)
    journal = Journal()

    def losses(x: Tensor) -> dict[str, Tensor]:
        return {
            "layers": sample_statistics_loss(teacher(x)[1], list(stats.values())),
            "input": sample_statistics_loss([x], [standard(3)]),
        }

    distil(start, losses, 30, 0.5, patience=20, journal=journal)
    first, *_, last = journal.log.rows
    assert journal.records[0].steps == 30 and not journal.records[0].note
    assert (first["stage"], first["step"]) == ("distil", 0)
    assert last["layers"] + last["input"] < 0.5 * (first["layers"] + first["input"])
    assert torch.equal(start, 0.02 * images(4))


def test_bounds_hold_at_every_step() -> None:
    def away(x: Tensor) -> dict[str, Tensor]:
        assert float(x.detach().max()) <= 0.5
        return {"away": -x.sum()}

    bounds = (torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 0.5))
    assert torch.equal(distil(torch.zeros(2, 3, 4, 4), away, 5, 0.3, bounds=bounds), torch.full((2, 3, 4, 4), 0.5))


def test_part_after_part() -> None:
    seen: list[int] = []

    def losses(x: Tensor) -> dict[str, Tensor]:
        seen.append(len(x))
        return square(x)

    found = distil(torch.ones(5, 3, 4, 4), losses, 10, 0.01, together=2)
    assert seen == [2] * 20 + [1] * 10 and torch.allclose(found, torch.tensor(0.9), atol=1e-2)


@pytest.mark.parametrize("in_gradient", [False, True])
@pytest.mark.parametrize("patience", [None, 20])
def test_nan_keeps_the_last_images_that_were_finite(in_gradient: bool, patience: int | None) -> None:
    calls = 0

    def losses(x: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        bad = (x.sum() - x.sum().detach()).sqrt() if in_gradient else x.sum() * math.nan  # 0 with an infinite slope
        return square(x) if calls < 4 else {"bad": bad}

    journal = Journal()
    found = distil(torch.ones(1, 3, 4, 4), losses, 10, 0.01, patience=patience, journal=journal)
    assert "became NaN" in journal.records[0].note and torch.isfinite(found).all()
    assert float(found.max()) == pytest.approx(0.97, abs=1e-3)


def test_ctrl_c_keeps_what_is_there() -> None:
    class Impatient(Progress):
        def track(self, what: str, steps: int):  # type: ignore[no-untyped-def]
            yield from range(3)
            raise KeyboardInterrupt

    journal = Journal(Impatient())
    found = distil(torch.ones(1, 3, 4, 4), square, 10, 0.01, journal=journal)
    assert journal.interrupted and journal.records[0].note == "interrupted after step 3 of 10"
    assert float(found.max()) == pytest.approx(0.97, abs=1e-3)
