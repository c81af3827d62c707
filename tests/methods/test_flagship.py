"""The recipe: every stage on tiny nets, what is kept and taken back, pieces, interruption, and what it costs to leave
one out.
"""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import SYNTHESIS
from torch import Tensor
from toy import CARD as TOY_CARD
from toy import gratings, trained
from zaq.methods.job import Job, Stage
from zaq.methods.loop import HeldOut
from zaq.methods.reconstruction import Reconstruction
from zaq.methods.synthesis import Synthesis
from zoo import SHAPE, ZOO, build, images, quantized_net, traced

import zaq
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.progress import Progress
from zaq.ir.capture import trace
from zaq.ir.nodes import attribute, input_node
from zaq.ir.taps import with_taps
from zaq.methods import flagship, reconstruction
from zaq.methods.flagship import Flagship, attempt, correct
from zaq.passes.fold import fold
from zaq.stages.blocks import blocks
from zaq.synth.losses import batch_norm_loss, relative_discrepancy

CARD = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
QUICK = Flagship(synthesis=4, refine=2, images=64, reconstruct=3, polish=5, game=1)
STAGES = [*SYNTHESIS, "calibrate", "squant", "reconstruct", "polish", "zaq", "bias correction"]


def job_of(name: str, bits: str = "w3a3") -> Job:
    torch.manual_seed(0)
    graph = traced(name)
    card = replace(CARD, input=tuple(int(d) for d in input_node(graph).meta["val"].shape[1:]))
    return Job(fold(graph)[0], QConfig.parse(bits), card)


def calibrated(name: str, bits: str = "w3a3") -> tuple[Job, Tensor]:
    job, x = job_of(name, bits), images(64)
    job.calibrate([x], 1)
    return job, x


@pytest.mark.parametrize("name", ZOO)
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
    assert list(stages) == [s for s in STAGES if s not in left_out]
    for stage in list(stages.values())[list(stages).index("calibrate") + 1 :]:
        assert stage["loss_after"] <= stage["loss_before"] and math.isfinite(stage["loss_after"])


def test_it_beats_rounding_by_far_and_stages_do_what_they_say() -> None:
    x, _ = gratings(1000, seed=1)
    method = Flagship(synthesis=60, refine=20, images=256, reconstruct=40, polish=40, game=2)
    report = (quantized := zaq.quantize(trained(), x[:1], "w3a3", method, card=TOY_CARD)).report
    rounded = zaq.quantize(trained(), x[:1], "w3a3", Flagship(60, 20, 256, False, 0, 0, 0, False), card=TOY_CARD)
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
    job = quantized_net("residual", "w4a4", replace(QUICK, polish=200, correct=correct), card=CARD).job
    assert job.samples is not None
    assert HeldOut(job, job.samples, relative_discrepancy)() == pytest.approx(job.stages[-1].loss_after, rel=1e-6)


def test_a_seed_repeats_bit_for_bit() -> None:
    a, b = (quantized_net("residual", "w4a4", QUICK, card=CARD, seed=3) for _ in range(2))
    assert all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())


def test_what_does_not_serve_is_taken_back() -> None:
    job, x = calibrated("residual")
    held_out, before = HeldOut(job, x, relative_discrepancy), copy.deepcopy(job.student.state_dict())

    def spoil(stage: Stage) -> None:
        for p in job.student.parameters():
            p.data.mul_(1.5)

    def break_(stage: Stage) -> None:
        for p in job.student.parameters():
            p.data.fill_(math.nan)

    for action in (spoil, break_):
        attempt(job, "try", held_out, action)
        stage = job.stages[-1]
        assert not stage.kept and "not kept" in stage.note and stage.loss_after == stage.loss_before
        assert all(torch.equal(v, before[k]) for k, v in job.student.state_dict().items())


def test_held_out_sees_what_bias_correction_does() -> None:
    """Graphs with taps share parameters with the student; a correction that puts others in their place would pass
    unseen.
    """
    job, x = calibrated("residual", "w2a2")
    for name in job.placement.weights:  # a shift that correction can take back
        bias = attribute(job.student, name.replace("weight", "bias"))
        bias.data += 0.5
    held_out = HeldOut(job, x, relative_discrepancy)
    attempt(job, "bias correction", held_out, lambda stage: correct(job, x))
    assert job.stages[-1].kept and (job.stages[-1].loss_after or 1) < 0.7 * (job.stages[-1].loss_before or 0)


@pytest.mark.parametrize("name", ["residual", "grouped", "transposed", "shared_weight"])
def test_reconstruction_brings_every_block_closer(name: str) -> None:
    job, x = calibrated(name)
    held_out, stage = HeldOut(job, x, relative_discrepancy), Stage("reconstruct", 0)
    ends = [e for b in blocks(job.teacher, job.placement.activations) for e in b.exits]
    teacher, student = with_taps(job.teacher, ends), with_taps(job.student, ends)

    def gaps() -> list[tuple[float, float]]:
        """Of each block's output: the error, and that of its channels' means."""
        with torch.no_grad():
            errors = [
                ((q - p) / p.std()).transpose(0, 1).flatten(1)
                for p, q in zip(teacher(x)[1], student(x)[1], strict=True)
            ]
        return [(float(e.pow(2).mean()), float(e.mean(1).pow(2).mean())) for e in errors]

    before, apart = held_out(), gaps()
    torch.manual_seed(0)
    Reconstruction()(job, x, 60, stage)
    assert held_out() < before and stage.steps % 60 == 0
    assert all(now[0] < 1.01 * was[0] for now, was in zip(gaps(), apart, strict=True))  # with 8 bits they stay
    assert gaps()[-1][1] < 0.1 * apart[-1][1] + 1e-4
    assert all(q.drop == 0 for q in job.placement.activations.values())
    assert not [m for m in job.student.modules() if type(m).__name__ == "LearnedRounding"]


def test_images_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    job, x = calibrated("residual")
    monkeypatch.setattr(reconstruction, "CACHED", 2**18)
    seen: list[int] = []
    run = reconstruction._Source._run
    monkeypatch.setattr(
        reconstruction._Source, "_run", lambda self, gm, part: (seen.append(len(part)), run(self, gm, part))[1]
    )
    held_out = HeldOut(job, x, relative_discrepancy)
    before = held_out()
    Reconstruction()(job, x, 40, Stage("reconstruct", 0))
    assert held_out() < before and max(seen) < len(x)


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
    assert torch.isfinite(quantized.module(images(2))).all()


def test_synthesis_learns_classes_and_statistics() -> None:
    x, _ = gratings(2, seed=0)
    job = Job(fold(trace(trained(), x))[0], QConfig.parse("w4a4"), replace(TOY_CARD, input=tuple(x.shape[1:])))
    torch.manual_seed(0)
    generator = Synthesis()(job, 60)
    with torch.no_grad():
        x, labels = generator.sample(256)
        right = float((job.teacher(x).argmax(1) == labels).float().mean())
    assert right > 0.3, "of five classes"
    first, *_, last = job.log.rows
    assert last["batch_norm"] < 0.7 * first["batch_norm"] and last["classes"] < 0.7 * first["classes"]


def test_refined_images_are_nearer_to_the_statistics_each_on_its_own() -> None:
    x, _ = gratings(2, seed=0)
    job = Job(fold(trace(trained(), x))[0], QConfig.parse("w4a4"), replace(TOY_CARD, input=tuple(x.shape[1:])))
    torch.manual_seed(0)
    drawn = Synthesis()(job, 10).draw(2 * job.batch)
    refined = Synthesis().refine(job, drawn, 40)
    stats = job.batch_norms()
    with torch.no_grad():
        before, after = (
            float(batch_norm_loss(with_taps(job.teacher, [*stats])(x)[1], list(stats.values())))
            for x in (drawn, refined)
        )
    assert after < 0.7 * before and torch.equal(refined, job.in_bounds(refined)) and refined.shape == drawn.shape
    assert job.stages[-1].steps == 40 and {"batch_norm", "classes"} <= set(job.log.rows[-1])
    assert Synthesis().refine(job_of("no_batch_norm"), drawn, 40) is drawn, "nothing to go by"
    assert Synthesis(largest=7).refine(job, drawn, 40) is drawn, "too large"


def test_more_images_are_refined_where_a_class_would_have_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flagship.PLANS, "default", flagship.Plan(4, 2, 64, 0, 0, 0))  # of five classes

    def calibrated_on(**settings: int) -> int:
        report = quantized_net("residual", "w4a4", Flagship(squant=False, correct=False, **settings), card=CARD).report
        return 64 * next(s["steps"] for s in report["stages"] if s["name"] == "calibrate")

    assert (calibrated_on(), calibrated_on(images=64), calibrated_on(refine=0)) == (128, 64, 64)


def test_of_large_images_a_part_starts_from_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flagship, "Synthesis", partial(Synthesis, largest=4))
    learned_on: list[Tensor] = []
    learn = Reconstruction.__call__
    monkeypatch.setattr(
        Reconstruction, "__call__", lambda self, job, x, *a: (learned_on.append(x), learn(self, job, x, *a))[1]
    )
    job = quantized_net("residual", "w4a4", QUICK, card=CARD).job
    assert [s.name for s in job.stages][:4] == SYNTHESIS and job.samples is not None
    for x, each in ((learned_on[0], flagship.A_NOISE), (job.samples, 2)):
        roughness = (x - x.roll(1, 3)).abs().mean((1, 2, 3))
        noise = torch.arange(len(x)) % each == 0
        assert float(roughness[noise].median()) > 2 * float(roughness[~noise].median())


def test_a_step_of_few_images_moves_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Flagship(synthesis=4, refine=2, images=64, squant=False, reconstruct=0, polish=20, game=0, correct=False)
    less = itertools.count()
    monkeypatch.setattr(
        flagship, "HeldOut", lambda *given: lambda: -float(next(less))
    )  # so that it is kept, whatever it does
    for enough in (flagship.ENOUGH, 10**6):
        monkeypatch.setattr(flagship, "ENOUGH", enough)
        job = quantized_net("residual", "w4a4", method, card=CARD).job
        moved = {
            name: not torch.equal(attribute(job.student, name), attribute(job.teacher, name))
            for name in job.placement.weights
        }
        assert job.stages[-1].kept and all(m == (enough < 10**6) for m in moved.values())
        assert all(q.scale.grad is not None for q in job.placement.activations.values() if not q.guaranteed), (
            "their ranges do"
        )


def test_a_short_synthesis_draws_from_fewer_classes() -> None:
    job = job_of("residual")
    few, all_five = (
        Synthesis()(job, 4),
        Synthesis()(job_of("no_batch_norm"), 30),
    )  # the latter excites the last features instead
    assert len(few.drawn) == min(5, 4 * job.batch // 100) and len(all_five.drawn) == 5


def test_mixed_bits_on_average() -> None:
    config = QConfig.parse("w4.0a4")
    assert config.mixed and str(config) == "w4.0a4"
    quantized = quantized_net("residual", config, QUICK, card=CARD)
    bits = quantized.report["layer_bits"]
    numel = {name: attribute(quantized.teacher, name).numel() for name in bits}
    average = sum(numel[n] * b for n, b in bits.items()) / sum(numel.values())
    assert 3 < average <= 4.001 and len(set(bits.values())) > 1
