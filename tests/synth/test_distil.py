"""Images out of a teacher: the loss falls, NaN and Ctrl-C keep what is there, the images given stay."""

import math

import pytest
import torch
from torch import Tensor
from zaq.synth.distil import distil, shifted
from zoo import images, traced

from zaq.engine.progress import Progress
from zaq.ir.taps import with_taps
from zaq.passes.fold import fold
from zaq.synth.losses import sample_statistics_loss, standard


def square(x: Tensor) -> dict[str, Tensor]:
    return {"square": x.pow(2).sum(), "nothing": 0 * x.sum()}


def test_the_statistics_come_closer() -> None:
    folded, _ = fold(traced("residual"))
    stats = {n.name: n.meta["bn"] for n in folded.graph.nodes if "bn" in n.meta}
    teacher, start = with_taps(folded.requires_grad_(False), list(stats)), 0.02 * images(4)
    rows = []

    def losses(x: Tensor) -> dict[str, Tensor]:
        return {
            "layers": sample_statistics_loss(teacher(x)[1], list(stats.values())),
            "input": sample_statistics_loss([x], [standard(3)]),
        }

    found = distil(start, losses, 30, 0.5, patience=20, log=lambda name, i, **values: rows.append((name, i, values)))
    assert found.steps == 30 and not found.note and not found.interrupted
    assert rows[0][:2] == ("distil", 0) and set(rows[0][2]) == {"layers", "input"}
    assert sum(rows[-1][2].values()) < 0.5 * sum(rows[0][2].values())
    assert torch.equal(start, 0.02 * images(4))


def test_bounds_hold_at_every_step() -> None:
    def away(x: Tensor) -> dict[str, Tensor]:
        assert float(x.detach().max()) <= 0.5
        return {"away": -x.sum()}

    found = distil(
        torch.zeros(2, 3, 4, 4), away, 5, 0.3, bounds=(torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 0.5))
    )
    assert torch.equal(found.images, torch.full((2, 3, 4, 4), 0.5))


@pytest.mark.parametrize("in_gradient", [False, True])
def test_nan_keeps_the_last_images_whose_loss_was_finite(in_gradient: bool) -> None:
    calls = 0

    def losses(x: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        bad = (x.sum() - x.sum().detach()).sqrt() if in_gradient else x.sum() * math.nan  # 0 with an infinite slope
        return square(x) if calls < 4 else {"bad": bad}

    found = distil(torch.ones(1, 3, 4, 4), losses, 10, 0.01)
    assert "became NaN" in found.note and torch.isfinite(found.images).all()
    assert float(found.images.max()) == pytest.approx(0.97 if in_gradient else 0.98, abs=1e-3)


def test_ctrl_c_keeps_what_is_there() -> None:
    class Impatient(Progress):
        def track(self, what: str, steps: int):  # type: ignore[no-untyped-def]
            yield from range(3)
            raise KeyboardInterrupt

    found = distil(torch.ones(1, 3, 4, 4), square, 10, 0.01, progress=Impatient())
    assert found.interrupted and found.steps == 3 and found.note == "interrupted after step 3 of 10"
    assert float(found.images.max()) == pytest.approx(0.97, abs=1e-3)


def test_shifted_moves_pixels_and_makes_none() -> None:
    x = images(2)
    torch.manual_seed(0)
    seen = [shifted(x, 2) for _ in range(20)]
    assert all(torch.equal(y.flatten().sort().values, x.flatten().sort().values) for y in seen)
    assert len({float(y[0, 0, 0, 0]) for y in seen}) > 5
