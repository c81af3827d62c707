"""The game itself, on tiny nets: it learns, repeats, rolls back, stops, and leaves the teacher alone."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from zoo import CARD, Impatient, build, calibrated, images, quantized_like, quantized_net, traced

import zaq
from zaq.api import quantize_graph
from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.engine.journal import Journal
from zaq.engine.state import State
from zaq.methods import zaq as zaq_method
from zaq.methods.zaq import ZAQ, Game, _Play
from zaq.stages.training import StepAdam
from zaq.synth.generators import DCGAN
from zaq.synth.losses import RELATIONS, activation_loss, output_discrepancy

QUICK = ZAQ(warm_up=4, rounds=3, latent=16, width=16)


@pytest.mark.parametrize(
    "name", ["residual", "transposed", "no_batch_norm"]
)  # all of them: test_flagship, which plays the game too
def test_a_structure_can_be_quantized(name: str) -> None:
    model, x = build(name), images(8)
    quantized = quantized_like(model, x[:1], "w8a8", QUICK, card=CARD)
    with torch.no_grad():
        float_outputs, outputs = model(x), quantized.module(x)
    assert outputs.shape == float_outputs.shape
    error = (outputs - float_outputs).pow(2).mean() / float_outputs.var()
    assert float(error) < 0.05
    assert [s["name"] for s in quantized.report["stages"]][-1] == "zaq"


def test_the_game_brings_the_student_closer() -> None:
    method = ZAQ(warm_up=10, rounds=25, latent=16, width=16, lr_student=0.01)
    report = quantized_net("residual", "w3a3", method, card=CARD).report
    stage = report["stages"][-1]
    assert stage["kept"] and stage["loss_after"] < 0.9 * stage["loss_before"]


def test_a_seed_repeats_bit_for_bit_and_another_does_not() -> None:
    a, b, c = (quantized_net("residual", "w4a4", QUICK, card=CARD, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())
    assert any(not torch.equal(v, c.module.state_dict()[k]) for k, v in a.module.state_dict().items())


def test_the_callers_random_state_and_model_are_left_alone() -> None:
    model = build("residual").train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    zaq.quantize(model, images(1), "w4a4", QUICK, card=CARD)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"relation": "scrm", "alpha": 1.0, "beta": 0.1, "layer_weights": False},
        {"relation": "gram"},
        {"learn_scales": False},
        {"bns": 1.0},
    ],
)
def test_the_codes_choices_are_options(options: dict[str, object]) -> None:
    method = ZAQ(warm_up=2, rounds=2, latent=16, width=16, **options)  # type: ignore[arg-type]
    quantized = quantized_net("residual", "w4a4", method, card=CARD)
    assert quantized.report["options"]["method"] | options == quantized.report["options"]["method"]
    assert len([r for r in quantized.journal.log.rows if "loss_q" in r]) == 2


@functools.cache
def graph() -> GraphModule:
    return traced("residual")


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({"alpha": 0.0}, "relation_gaps"),
        ({"beta": 0.0}, "activation_loss"),
        ({"layer_weights": False}, "softmax"),
        ({}, "gram"),
    ],
)
def test_an_ablation_leaves_its_part_out(
    options: dict[str, object], unused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no weight is not computed: without D_f no relation map, without L_a no activation loss."""

    def computed(*_: object) -> torch.Tensor:
        raise AssertionError(f"{unused} was computed")

    if unused == "gram":
        monkeypatch.setitem(RELATIONS, "gram", computed)
    else:
        monkeypatch.setattr(torch if unused == "softmax" else zaq_method, unused, computed)
    quantized = quantize_graph(graph(), QConfig.parse("w4a4"), replace(QUICK, **options), card=CARD)  # type: ignore[arg-type]
    rows = [r for r in quantized.journal.log.rows if "loss_q" in r]
    assert len(rows) == 3
    for row in rows:
        assert row["loss_q"] == pytest.approx(row["d_o"] + replace(QUICK, **options).alpha * row["d_f"])  # type: ignore[arg-type]
        assert (row["d_f"] == 0.0) == ("alpha" in options)


def test_each_part_of_an_ablation_is_computed_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other half of the test above: with the part switched on, what it must not touch is what it stumbles over."""
    for unused, options in (("relation_gaps", {}), ("activation_loss", {}), ("gram", {"relation": "gram"})):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            broken = lambda *_: 1 / 0  # noqa: E731
            patch.setitem(RELATIONS, "gram", broken) if unused == "gram" else patch.setattr(zaq_method, unused, broken)
            quantize_graph(graph(), QConfig.parse("w4a4"), replace(QUICK, **options), card=CARD)  # type: ignore[arg-type]


def test_frozen_ranges_stay() -> None:
    """With learn_scales=False the grids are those that calibration set, whatever the game does to the weights."""
    scales = []
    for rounds in (0, 2):
        method = ZAQ(warm_up=2, rounds=rounds, latent=16, width=16, learn_scales=False)
        placement = quantized_net("residual", "w4a4", method, card=CARD).student.placement
        weights = [
            q for q in placement.weights.values() if not q.pairs
        ]  # those of 8 bits make room for what weights became
        scales.append([q.scale for q in (*placement.activations.values(), *weights)])
    assert all(torch.equal(a, b) for a, b in zip(*scales, strict=True))


def test_no_batch_norm_no_classes() -> None:
    """ZAQ needs neither: the generator starts from noise, and the game goes on."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    quantized = quantized_like(net, images(1), "w8a8", QUICK, card=CARD)
    assert any("neither batch norm nor classes" in n for n in quantized.report["notes"])
    assert quantized.report["stages"][-1]["steps"] == 3


def test_signs() -> None:
    """The student goes down the discrepancy, the generator up: each alone, the other held still."""
    gaps = {}
    for who, rules in {"student": {"g_steps": 0, "q_steps": 20}, "generator": {"g_steps": 20, "q_steps": 0}}.items():
        state = calibrated("residual")
        torch.manual_seed(0)
        state.generator = DCGAN(state.task.card, 16, 16, state.task.classes)
        game = Game(steps=1, lr_student=3e-3, lr_generator=1e-2, beta=0.0, **rules)  # type: ignore[arg-type]
        loop = game.start(state, Journal())

        def gap(state: State = state) -> float:
            with torch.no_grad(), drawing(1):
                x = state.generator.draw(64)
                return float(output_discrepancy([state.task.teacher(x)], [state.student(x)]))

        before = gap()
        loop.step(0, 1)
        gaps[who] = gap() / before
    assert gaps["student"] < 0.9 and gaps["generator"] > 1.1, gaps


def test_the_activation_loss_is_gone_down_and_only_by_the_generator() -> None:
    """L_DE has + beta L_a, where L_a is minus what excites the last features (ZAQ, eq. 8)."""
    found = {}
    for beta in (0.0, 50.0):
        state = calibrated("residual")
        torch.manual_seed(0)
        state.generator = DCGAN(state.task.card, 16, 16, state.task.classes)
        rules = Game(steps=1, q_steps=0, g_steps=20, beta=beta, lr_generator=1e-2)
        before = state.student.snapshot()
        rules.start(state, Journal()).step(0, 1)
        assert all(torch.equal(v, before[k]) for k, v in state.student.snapshot().items())
        with torch.no_grad(), drawing(1):
            features = state.task.teacher_at(state.task.taps)(state.generator.draw(64))[1]
            found[beta] = float(activation_loss(features[-1]))
    assert found[50.0] < found[0.0] - 0.05 * abs(found[0.0])


def test_layer_weights_are_the_softmax_of_remembered_gaps() -> None:
    state = calibrated("residual")
    state.generator = DCGAN(state.task.card, 16, 16, state.task.classes)
    play = _Play(Game(ema=0.75), state)
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    assert torch.equal(play._weights(first), first.softmax(0))
    torch.testing.assert_close(play._weights(second), (0.75 * first + 0.25 * second).softmax(0))
    saved = play.state_dict()
    play._weights(torch.tensor([9.0, 9.0]))
    play.load_state_dict(saved)
    torch.testing.assert_close(
        play._weights(second), (0.75 * (0.75 * first + 0.25 * second) + 0.25 * second).softmax(0)
    )
    assert torch.equal(_Play(Game(layer_weights=False), state)._weights(first), torch.tensor([0.5, 0.5]))


def test_ctrl_c_keeps_the_last_whole_round() -> None:
    quantized = quantized_net("residual", "w4a4", QUICK, card=CARD, progress=Impatient("zaq", 2))
    stage = quantized.report["stages"][-1]
    assert stage["name"] == "zaq" and stage["note"].startswith("interrupted after step 2 of 3")


def test_step_adam_counts_in_units() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = StepAdam([{"params": [weight], "lr": 0.01}], {weight: torch.tensor([[1.0], [100.0]])})
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -0.01 * torch.tensor([[1.0], [100.0]]).expand(2, 3))
