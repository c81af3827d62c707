"""The recipe: every stage on tiny nets, interruption, a seed, and what it costs to leave one out."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from conftest import SYNTHESIS
from toy import CARD as TOY_CARD
from toy import gratings, trained
from zoo import CARD, ZOO, build, images, quantized_like, quantized_net, traced

from zaq.api import Quantized, quantize_graph
from zaq.config.bits import QConfig
from zaq.engine.progress import Progress
from zaq.engine.state import HeldOut
from zaq.errors import BitsError
from zaq.ir.nodes import attribute
from zaq.methods import flagship
from zaq.methods.flagship import Flagship
from zaq.synth.losses import relative_discrepancy

QUICK = Flagship(synthesis=4, refine=2, images=64, reconstruct=3, polish=5, game=1)
STAGES = [*SYNTHESIS, "calibrate", "squant", "reconstruct", "polish", "zaq", "bias correction"]
UNLIKE = ("residual", "depthwise", "shared_weight", "transposed", "no_batch_norm", "tokens")
WITH_8_BITS = [*STAGES[:5], "whole ranges", *STAGES[5:]]  # of activations


@pytest.mark.parametrize("name", [n if n in UNLIKE else pytest.param(n, marks=pytest.mark.slow) for n in ZOO])
def test_every_structure_can_be_quantized(name: str) -> None:
    model, x = build(name), images(8)
    quantized = quantized_net(name, "w6a8", QUICK, card=CARD)
    with torch.no_grad():
        expected, outputs = model(x), quantized.module(x)
    assert outputs.shape == expected.shape and float((outputs - expected).pow(2).mean() / expected.var()) < 0.05
    few = all(
        q.bits == 8 for q in quantized.student.placement.weights.values()
    )  # a first and a last layer, and none between
    left_out = [
        *(["squant", "reconstruct"] if few else []),
        *([] if quantized.task.batch_norms() else ["refine", "held-out refine"]),
    ]
    stages = {s["name"]: s for s in quantized.report["stages"]}
    assert list(stages) == [s for s in WITH_8_BITS if s not in left_out]
    for stage in list(stages.values())[list(stages).index("calibrate") + 1 :]:
        assert stage["loss_after"] <= stage["loss_before"] and math.isfinite(stage["loss_after"])


def test_it_beats_rounding_by_far_and_stages_do_what_they_say() -> None:
    x, _ = gratings(1000, seed=1)
    method = Flagship(synthesis=60, refine=20, images=256, reconstruct=40, polish=40, game=2)
    report = (quantized := quantized_like(trained(), x[:1], "w3a3", method, card=TOY_CARD)).report
    rounded = quantized_like(trained(), x[:1], "w3a3", Flagship(60, 20, 256, False, 0, 0, 0, False), card=TOY_CARD)
    with torch.no_grad():
        p, q, r = trained()(x), quantized.module(x), rounded.module(x)
    assert float((p - q).abs().mean()) < 0.75 * float((p - r).abs().mean())
    stages = {s["name"]: s for s in report["stages"]}
    assert (
        stages["reconstruct"]["kept"]
        and stages["reconstruct"]["loss_after"] < 0.9 * stages["reconstruct"]["loss_before"]
    )
    assert stages["polish"]["steps"] == 40, "steps, as they were asked for, not rounds of them"
    assert [s["name"] for s in rounded.report["stages"]] == [*SYNTHESIS, "calibrate"]


@pytest.mark.parametrize("correct", [True, False])
def test_what_was_judged_is_what_is_shipped(correct: bool) -> None:
    """Training forgets that pairs of 8-bit products must fit into 16 bits; putting that right at the very end would be
    unseen.
    """
    quantized = quantized_net("residual", "w4a4", replace(QUICK, polish=200, correct=correct), card=CARD)
    state, records = quantized.state, quantized.journal.records
    assert state.samples is not None and records[-1].name == ("bias correction" if correct else "zaq")
    held_out = HeldOut(state, state.samples, relative_discrepancy)
    assert held_out() == pytest.approx(records[-1].loss_after, rel=1e-6)


def test_a_seed_repeats_bit_for_bit() -> None:
    a, b = (quantized_net("residual", "w4a4", QUICK, card=CARD, seed=3) for _ in range(2))
    assert all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())


class Impatient(Progress):
    """Presses Ctrl-C when a stage of a name has come half-way."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def track(self, what: str, steps: int):  # type: ignore[no-untyped-def]
        for i in range(steps):
            if what == self.stage and i == steps // 2:
                raise KeyboardInterrupt
            yield i


@pytest.mark.parametrize("stage", ["synthesis", "refine", "reconstruct", "polish", "zaq"])
def test_ctrl_c_keeps_what_is_finished(stage: str) -> None:
    quantized = quantized_net(
        "residual", "w4a4", replace(QUICK, polish=10, game=2), card=CARD, progress=Impatient(stage)
    )
    report = quantized.report
    assert report["interrupted"] and any("interrupted" in s["note"] for s in report["stages"])
    assert STAGES.index(report["stages"][-1]["name"]) <= max(STAGES.index(stage), STAGES.index("calibrate"))
    assert quantized.state.samples is not None and torch.isfinite(quantized.state.samples).all()
    assert torch.isfinite(quantized.module(images(2))).all()


def test_more_images_are_refined_where_a_class_would_have_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flagship.LENGTHS, "default", flagship.Lengths(4, 2, 64, 0, 0, 0))  # of five classes

    def calibrated_on(**settings: int) -> int:
        plain = {"calibrate.drawn": False}  # a toy's batch norms are as unlike drawings as unlike anything
        method = Flagship(squant=False, correct=False, stage_constants=plain, **settings)
        report = quantized_net("residual", "w4a4", method, card=CARD).report
        return 64 * next(s["steps"] for s in report["stages"] if s["name"] == "calibrate")

    assert (calibrated_on(), calibrated_on(images=64), calibrated_on(refine=0)) == (128, 64, 64)


def test_mixed_bits_on_average() -> None:
    config = QConfig.parse("w4.0a4")
    assert config.mixed and str(config) == "w4.0a4"
    quantized = quantized_net("residual", config, QUICK, card=CARD)
    bits = quantized.report["layer_bits"]
    numel = {name: attribute(quantized.teacher, name).numel() for name in bits}
    average = sum(numel[n] * b for n, b in bits.items()) / sum(numel.values())
    assert 3 < average <= 4.001 and len(set(bits.values())) > 1


@functools.cache
def plain() -> Quantized:
    return quantized_net("residual", "w4a4", QUICK, card=CARD)


@pytest.mark.parametrize(
    "constant",
    [
        {"feature": 0.0},
        {"travel": 1e-3},
        {"fastest": 1e-4},
        {"lr_bias": 1e-2},
        {"drop": 0.0},
        {"attack": 0.0},
        {"attack_steps": 1},
    ],
)
def test_every_constant_reaches_its_stage(constant: dict[str, float]) -> None:
    """With another value the distillation goes another way; the attack's move what is judged by, and nothing else (what
    is kept, and so where the next stage begins, follows from the judge)."""
    attack = next(iter(constant)).startswith("attack")
    other = quantized_net("residual", "w4a4", replace(QUICK, **constant), card=CARD)  # type: ignore[arg-type]
    losses = [[r["loss_q"] for r in q.journal.log.rows if r["stage"] == "polish"] for q in (other, plain())]
    assert len(losses[0]) == QUICK.polish and (attack or losses[0] != losses[1])
    assert torch.equal(plain().state.images, other.state.images)  # type: ignore[arg-type]
    ours, theirs = plain().state.samples, other.state.samples
    assert ours is not None and theirs is not None and torch.equal(ours[: len(ours) // 2], theirs[: len(ours) // 2])
    assert torch.equal(ours, theirs) == (not attack)


def test_a_stage_has_its_constants_set_by_name() -> None:
    """What `-s stage.field=value` says reaches the stage, and what is not there is a sentence."""
    constants = {"reconstruct.lr_bias": 0.0, "hold-out.attack": 0.0, "held-out-refine.lr": 0.0}
    method = replace(QUICK, stage_constants=constants)
    quantized = quantized_net("residual", "w4a4", method, card=CARD)
    assert quantized.report["options"]["method"] | constants == quantized.report["options"]["method"]
    plain = quantized_net("residual", "w4a4", QUICK, card=CARD)
    assert not torch.equal(quantized.state.samples, plain.state.samples)  # type: ignore[arg-type]
    assert torch.equal(quantized.state.images, plain.state.images)  # type: ignore[arg-type]
    for key, message in (
        ("reconstrukt.lr_bias", "stage of flagship 'reconstrukt'"),
        ("zaq.lr", "constant of zaq 'lr'"),
    ):
        with pytest.raises(BitsError, match=f"-s {key}: unknown {message}"):
            quantize_graph(
                traced("residual"), QConfig.parse("w4a4"), replace(QUICK, stage_constants={key: 1.0}), card=CARD
            )
