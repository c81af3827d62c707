"""The game itself, on tiny nets: it learns, repeats, rolls back, stops, and leaves the teacher alone."""

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from zaq.methods.job import Job
from zaq.methods.loop import Game, play
from zaq.methods.training import StepAdam
from zoo import SHAPE, build, images, quantized_net, traced

import zaq
from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.methods import zaq as zaq_method
from zaq.methods.zaq import ZAQ
from zaq.passes.fold import fold
from zaq.synth.losses import RELATIONS

CARD = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
QUICK = ZAQ(warm_up=4, rounds=3, latent=16, width=16)


@pytest.mark.parametrize(
    "name", ["residual", "transposed", "no_batch_norm"]
)  # all of them: test_flagship, which plays the game too
def test_a_structure_can_be_quantized(name: str) -> None:
    model, x = build(name), images(8)
    quantized = zaq.quantize(model, x[:1], "w8a8", QUICK, card=CARD)
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
    quantized = zaq.quantize(net, images(1), "w8a8", QUICK, card=CARD)
    assert any("neither batch norm nor classes" in n for n in quantized.report["notes"])
    assert quantized.report["stages"][-1]["steps"] == 3


class Fixture:
    """A game of two linear layers whose rounds do as they are told."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student, self.generator = nn.Linear(2, 2), nn.Linear(2, 2)
        teacher, _ = fold(traced("no_batch_norm"))
        optimizers = [torch.optim.Adam(m.parameters(), 0.1) for m in (self.student, self.generator)]
        self.game = Game(self.student, self.generator, *optimizers)
        self.job = Job(teacher, QConfig.parse("w4a4"), CARD)

    def loss(self) -> float:
        return float(self.student.weight.detach().abs().sum())

    def play(self, one_round: object, rounds: int = 6) -> None:
        play(self.job, self.game, rounds, one_round, lambda p: 1.0, self.loss, "game")  # type: ignore[arg-type]


def test_nan_rolls_back_twice_with_a_smaller_step_then_stops() -> None:
    it = Fixture()
    rates = []

    def one_round(game: Game) -> dict[str, float]:
        rates.append(game.optimizer_q.param_groups[0]["lr"])
        with torch.no_grad():
            it.student.weight.mul_(0.5)
            if len(rates) > 2:
                it.student.weight.fill_(math.nan)
        return {"loss": math.nan if len(rates) > 2 else 1.0}

    before = it.student.weight.detach().clone()
    it.play(one_round)
    stage = it.journal.records[0]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.001])
    assert "became NaN 3 times" in stage.note and stage.steps == 2 and stage.kept
    torch.testing.assert_close(it.student.weight.detach(), before / 4)  # the last good round


def test_ctrl_c_keeps_the_last_whole_round() -> None:
    it = Fixture()
    rounds = 0

    def one_round(game: Game) -> dict[str, float]:
        nonlocal rounds
        rounds += 1
        with torch.no_grad():
            it.student.weight.mul_(0.5)
        if rounds == 3:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    before = it.student.weight.detach().clone()
    it.play(one_round)
    assert it.job.interrupted and it.journal.records[0].note == "interrupted after round 2 of 6"
    torch.testing.assert_close(it.student.weight.detach(), before / 4)


def test_a_game_that_makes_it_worse_is_not_kept() -> None:
    it = Fixture()
    before = it.student.weight.detach().clone()

    def one_round(game: Game) -> dict[str, float]:
        with torch.no_grad():
            it.student.weight.mul_(2)
        return {"loss": 1.0}

    it.play(one_round)
    assert not it.journal.records[0].kept and torch.equal(it.student.weight, before)


def test_saved_state_continues_as_if_never_stopped() -> None:
    it = Fixture()

    def step() -> None:
        loss = it.student(it.generator(torch.randn(8, 2))).pow(2).mean()
        for optimizer in (it.game.optimizer_q, it.game.optimizer_g):
            optimizer.zero_grad()
        loss.backward()
        it.game.optimizer_q.step()
        it.game.optimizer_g.step()

    step()
    saved = it.game.save()
    step()
    expected = it.student.weight.detach().clone()
    step()
    it.game.restore(saved)
    step()
    assert torch.equal(it.student.weight, expected)


def test_step_adam_counts_in_units() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = StepAdam([{"params": [weight], "lr": 0.01}], {weight: torch.tensor([[1.0], [100.0]])})
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -0.01 * torch.tensor([[1.0], [100.0]]).expand(2, 3))
