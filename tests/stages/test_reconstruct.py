"""Blocks learned one after another: each comes closer, with features in memory or in files, and nothing of the
learning stays."""

import pytest
import torch
from zoo import calibrated, images, traced

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.ir.taps import with_taps
from zaq.stages.blocks import blocks
from zaq.stages.reconstruct import Reconstruct


@pytest.mark.parametrize("name", ["residual", "grouped", "transposed", "shared_weight"])
def test_every_block_comes_closer(name: str) -> None:
    state, journal, x = calibrated(name), Journal(), images(64)
    teacher, placement = state.task.teacher, state.student.placement
    ends = [e for b in blocks(teacher, placement.activations) for e in b.exits]
    tapped, learned = with_taps(teacher, ends), with_taps(state.student.module, ends)

    def gaps() -> list[tuple[float, float]]:
        """Of each block's output: the error, and that of its channels' means."""
        with torch.no_grad():
            errors = [
                ((q - p) / p.std()).transpose(0, 1).flatten(1) for p, q in zip(tapped(x)[1], learned(x)[1], strict=True)
            ]
        return [(float(e.pow(2).mean()), float(e.mean(1).pow(2).mean())) for e in errors]

    apart = gaps()
    run_stages([Reconstruct(steps=60)], state, journal)
    record = journal.records[0]
    assert record.kept and (record.loss_after or 1) < (record.loss_before or 0) and record.steps % 60 == 0
    assert all(now[0] < 1.01 * was[0] for now, was in zip(gaps(), apart, strict=True))  # with 8 bits they stay
    assert gaps()[-1][1] < 0.1 * apart[-1][1] + 1e-4
    assert all(q.drop == 0 for q in placement.activations.values())
    assert not [m for m in state.student.module.modules() if type(m).__name__ == "LearnedRounding"]


def test_features_in_files_teach_the_same() -> None:
    """All that does not fit is in files: the student is the same to the bit, and no more is held than is allowed."""
    traced("residual")  # seeds torch where it is traced for the first time
    found = []
    for memory in (2**18, 2**30):
        torch.manual_seed(0)
        state = calibrated("residual", "w3a4", memory=memory)
        loop, held = Reconstruct(steps=3).start(state, Journal()), 0
        for i in range(Reconstruct(steps=3).length(state)):
            loop.step(i, 6)
            held = max(held, state.store.held)
        found.append((held, state.student.snapshot()))
    (small, ours), (large, theirs) = found
    assert small <= 2**18 < large and all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_blocks_go_on_where_they_were_put_back_as_if_they_had_not_been() -> None:
    """What enters the next block is found anew then, and must be what was kept: rounded, as learned blocks write it."""
    losses = []
    traced("residual")  # seeds torch where it is traced for the first time
    for put_back in (False, True):
        torch.manual_seed(0)
        state = calibrated("residual", "w3a4")
        loop = Reconstruct(steps=2).start(state, Journal())
        losses.append([loop.step(i, 6)["loss"] for i in range(4)])
        if put_back:
            loop.restore(loop.save())
        losses[-1].append(loop.step(4, 6)["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("after", [10, 150])
def test_ctrl_c_keeps_the_blocks_that_are_learned(after: int) -> None:
    """Inside of the first block nothing is kept; later the blocks before it are,
    and no quantizer is left out of place."""
    state, journal = calibrated("residual"), Journal()
    state.judge, before = None, state.student.snapshot()
    steps: list[int] = []

    class Impatient(Reconstruct):
        def start(self, state, journal):  # type: ignore[no-untyped-def]
            loop = super().start(state, journal)
            take = loop.step

            def step(i: int, of: int) -> dict[str, float]:
                steps.append(i)
                if i == after:
                    raise KeyboardInterrupt
                return take(i, of)

            loop.step = step  # type: ignore[method-assign]
            return loop

    run_stages([Impatient(steps=60)], state, journal)
    changed = any(not torch.equal(v, before[k]) for k, v in state.student.module.state_dict().items())
    assert journal.interrupted and len(steps) == after + 1 and changed == (after > 60)
    assert set(state.student.module.state_dict()) == set(before)
    assert not [m for m in state.student.module.modules() if type(m).__name__ == "LearnedRounding"]
    assert all(q.drop == 0 for q in state.student.placement.activations.values())
