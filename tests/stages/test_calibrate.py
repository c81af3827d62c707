"""Samples held out: half of them are moved to where student and teacher differ more; noise is what it says."""

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from zoo import calibrated, images, state_of

from zaq.config.card import Card
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import HeldOut
from zaq.ir.capture import trace
from zaq.ir.taps import with_taps
from zaq.stages.calibrate import Calibrate, HoldOut, Noise
from zaq.stages.synthesis import Mingle
from zaq.synth.drawings import drawings, reads_drawings
from zaq.synth.leaves import leaves
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


def made_for(card: Card, drawn: bool) -> GraphModule:
    """A network of three convolutions whose one batch norm remembers drawings, or dead leaves."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=1.0), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))
    some = drawings(256, card) if drawn else leaves(256, card)
    with torch.no_grad():
        net.train()(some)
        norm = net[1]
        norm.weight.copy_(norm.running_var.sqrt())
        norm.bias.copy_(norm.running_mean)
    return trace(net.eval(), some[:1])


@pytest.mark.parametrize("drawn", [True, False])
def test_drawings_are_shown_to_a_network_that_remembers_them(drawn: bool) -> None:
    card = Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    ranges, steps = [], []
    for asked in (False, True):
        state, journal = state_of(made_for(card, drawn), "w8a8", card), Journal()
        assert reads_drawings(state.task) == drawn and not state.task.remembers
        torch.manual_seed(1)
        state.images = 0.2 * torch.randn(64, 3, 32, 32)
        run_stages([Calibrate(observer="minmax", drawn=asked)], state, journal)
        learned = [q for q in state.student.placement.activations.values() if not q.guaranteed]
        ranges.append(torch.stack([q.scale.detach() for q in learned]))
        steps.append(journal.records[0].steps)
    assert torch.equal(ranges[0], ranges[1]) != drawn and bool((ranges[1] >= ranges[0]).all())
    assert (steps[1] > steps[0]) == drawn


def test_what_judges_a_reader_of_drawings_is_a_third_drawings() -> None:
    card = Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    state = state_of(made_for(card, True), "w8a8", card)
    state.samples = torch.full((30, 3, 32, 32), 0.25)
    run_stages([Mingle()], state, Journal())
    kinds = [image.flatten(1).unique(dim=1).shape[1] for image in state.samples]
    assert [sum(low <= k <= high for k in kinds) for low, high in ((1, 1), (2, 2), (3, 9999))] == [10, 10, 10]
