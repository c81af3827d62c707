"""Samples held out: half of them are moved to where student and teacher differ more; noise is what it says."""

import pytest
import torch
from zoo import calibrated, images, state_of

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import HeldOut
from zaq.ir.taps import with_taps
from zaq.stages.calibrate import Calibrate, HoldOut, Noise
from zaq.synth.losses import output_discrepancy


def test_half_of_the_samples_become_harder() -> None:
    state, x = calibrated("residual"), images(64)
    easy = HeldOut(state, x[32:], output_discrepancy)()
    run_stages([HoldOut(attack=0.05, steps=3)], state, Journal())
    assert state.samples is not None and torch.equal(state.samples[:32], x[:32])
    moved = state.samples[32:]
    low, high = state.task.card.bounds()
    assert float(((moved - x[32:].clamp(low, high)).abs() / (high - low)).max()) <= 0.05 + 1e-5
    assert HeldOut(state, moved, output_discrepancy)() > 1.05 * easy
    assert state.judge is not None and state.judge() > 0


def test_without_an_attack_they_stay() -> None:
    state = calibrated("residual")
    run_stages([HoldOut(attack=0.0, relative=False)], state, Journal())
    assert torch.equal(state.samples, images(64))  # type: ignore[arg-type]
    assert state.judge is not None and state.judge() == HeldOut(state, images(64), output_discrepancy)()


def test_noise_is_the_seeds_own_and_in_bounds() -> None:
    state = state_of("residual", seed=5)
    run_stages([Noise(steps=2, stored=True)], state, Journal())
    torch.manual_seed(5)
    wanted = [state.task.noise() for _ in range(3)]
    assert torch.equal(state.images, torch.cat(wanted[:2])) and torch.equal(state.samples, wanted[2])  # type: ignore[arg-type]
    assert state.held_out and torch.equal(state.images, state.task.card.in_bounds(state.images))  # type: ignore[arg-type]


def test_ranges_are_what_images_cause_a_batch_a_step() -> None:
    ranges = {}
    for observer in ("minmax", "mse"):
        state, journal = state_of("residual", "w8a8"), Journal()
        state.images = images(130)
        run_stages([Calibrate(observer=observer)], state, journal)
        assert journal.records[0].steps == -(-130 // state.task.batch)
        learned = [q for q in state.student.placement.activations.values() if not q.guaranteed]
        ranges[observer] = torch.stack([q.scale.detach() for q in learned])
    assert (ranges["mse"] <= ranges["minmax"] * 1.001).all() and (ranges["mse"] < ranges["minmax"]).any()
    with torch.no_grad():
        seen = with_taps(state.task.teacher, ["relu"])(images(130))[1][0]
    assert float(ranges["minmax"][0]) == pytest.approx(float(seen.max()) / 255, rel=0.02)


@pytest.mark.parametrize(("name", "shown"), [("no_batch_norm", True), ("residual", False)])
def test_drawings_stand_beside_where_batch_norm_remembers_nothing(name: str, shown: bool) -> None:
    """Their ranges are never narrower; the network with batch norm has those of its images."""
    ranges, steps = [], []
    for drawn in (False, True):
        state, journal = state_of(name, "w8a8"), Journal()
        state.images = 0.2 * images(64)
        run_stages([Calibrate(observer="minmax", drawn=drawn)], state, journal)
        learned = [q for q in state.student.placement.activations.values() if not q.guaranteed]
        ranges.append(torch.stack([q.scale.detach() for q in learned]))
        steps.append(journal.records[0].steps)
    assert state.task.remembers != shown
    assert torch.equal(ranges[0], ranges[1]) != shown and bool((ranges[1] >= ranges[0]).all())
    assert (steps[1] > steps[0]) == shown
