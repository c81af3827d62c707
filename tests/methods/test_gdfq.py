"""GDFQ on tiny nets: its losses against their formulas, SGD on folded weights against SGD on the others,
frozen ranges."""

import dataclasses
import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from zoo import CARD, build, images, state_of, traced

from zaq.api import Quantized, quantize_graph
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import BitsError
from zaq.ir.capture import trace
from zaq.ir.nodes import attribute
from zaq.ir.taps import with_taps
from zaq.methods import gdfq
from zaq.methods.gdfq import GDFQ, FoldedSGD, Play, folded_gains, statistics_loss
from zaq.passes.fold import BatchNormStats, fold
from zaq.quant.student import Student
from zaq.stages.training import distillation
from zaq.synth.losses import channel_moments

QUICK = GDFQ(epochs=2, iterations=5, warm_up=0.5, batch=8, latent=16, width=16, lr_student=1e-3)


@functools.cache
def graph(name: str) -> GraphModule:
    return traced(name)


def quantize(name: str, method: GDFQ, bits: str = "w4a4", seed: int = 0) -> Quantized:
    return quantize_graph(graph(name), QConfig.parse(bits), method, card=CARD, seed=seed)


@pytest.mark.parametrize("name", ["residual", "depthwise", "shared_weight", "signed", "functional_batch_norm"])
def test_every_classifier_with_batch_norm_can_be_quantized(name: str) -> None:
    report = quantize(name, QUICK, "w8a8").report
    stages = {s["name"]: s for s in report["stages"]}
    assert list(stages) == ["warm-up", "gdfq"] and stages["warm-up"]["steps"] == stages["gdfq"]["steps"] == 5
    assert (
        math.isfinite(stages["gdfq"]["loss_before"]) and stages["gdfq"]["loss_after"] <= stages["gdfq"]["loss_before"]
    )


@pytest.mark.parametrize(
    ("name", "missing"), [("transposed", "is no classifier"), ("no_batch_norm", "has no batch norm")]
)
def test_what_it_lives_on_must_be_there(name: str, missing: str) -> None:
    with pytest.raises(BitsError, match=f"{missing}.*--method zaq needs neither"):
        quantize(name, QUICK)


def test_it_brings_the_student_closer() -> None:
    method = replace(QUICK, epochs=8, warm_up=0.25, batch=16, lr_student=0.01)
    stage = quantize("residual", method, "w3a3").report["stages"][-1]
    assert stage["kept"] and stage["loss_after"] < 0.9 * stage["loss_before"]


def test_a_seed_repeats_bit_for_bit_and_another_does_not() -> None:
    a, b, c = (quantize("residual", QUICK, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())
    assert any(not torch.equal(v, c.module.state_dict()[k]) for k, v in a.module.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "mean"},
        {"alpha": 0.0},
        {"beta": 0.0},
        {"temperature": 4.0},
        {"momentum": 0.5, "weight_decay": 0.0},
        {"milestones": ()},
        {"lr_generator": 1e-4},
    ],
)
def test_its_constants_are_options(options: dict[str, object]) -> None:
    method = replace(QUICK, epochs=3, **options)  # type: ignore[arg-type]
    quantized = quantize("residual", method)
    assert quantized.report["options"]["method"] | options == quantized.report["options"]["method"]
    assert quantized.journal.log.rows[-1]["held_out"] != plain_held_out()


@functools.cache
def plain_held_out() -> float:
    return float(quantize("residual", replace(QUICK, epochs=3)).journal.log.rows[-1]["held_out"])


def test_an_unknown_reduction_is_a_sentence() -> None:
    with pytest.raises(BitsError, match="Did you mean 'mean'"):
        GDFQ(reduction="meen")


def run(method: GDFQ, bits: str = "w4a4") -> tuple[State, Journal]:
    state, journal = state_of(graph("residual"), bits), Journal()
    run_stages(method.plan(state.task), state, journal)
    return state, journal


def test_activation_ranges_are_frozen_after_calibration_and_weight_grids_follow_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[tuple[list[Tensor], list[Tensor]]] = []

    def grids(student: Student) -> tuple[list[Tensor], list[Tensor]]:
        return [q.scale.detach().clone() for q in student.placement.activations.values()], [
            student.weight(n).detach().flatten(1).abs().amax(1) / q.quant_max
            for n, q in student.placement.weights.items()
        ]

    def fit_weights(student: Student, search: bool) -> None:
        fit(student, search)
        found.append(grids(student))

    fit = Student.fit_weights
    monkeypatch.setattr(Student, "fit_weights", fit_weights)
    state, _ = run(replace(QUICK, lr_student=1e-2))
    assert len(found) == 1 + 5
    assert all(torch.equal(a, b) for scales, _ in found for a, b in zip(scales, found[0][0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0][1], found[-1][1], strict=True))  # the weights did move
    placement = state.student.placement
    for quantizer, scale in zip(placement.weights.values(), grids(state.student)[1], strict=True):
        if not quantizer.pairs:  # 8 bits make room in 16-bit sums
            torch.testing.assert_close(quantizer.scale.detach(), scale)
    quantizers = (*placement.weights.values(), *placement.activations.values())
    assert not any(q.scale.requires_grad for q in quantizers)


def test_ranges_are_moving_averages_of_the_first_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten steps that G learns alone, three are watched; the range is what EMA makes of those three."""
    monkeypatch.setattr(gdfq, "WARM_UP", 3)
    seen: list[Tensor] = []

    def watched(student: Student, images: Tensor) -> Tensor:
        if any(q.observing for q in student.placement.activations.values()):
            seen.append(images)
        return call(student, images)

    call = Student.__call__
    monkeypatch.setattr(Student, "__call__", watched)
    state, journal = run(replace(QUICK, iterations=5, warm_up=1.0), "w8a8")
    assert len(seen) == 3 and [r.steps for r in journal.records] == [10]
    node, quantizer = next((n, q) for n, q in state.student.placement.activations.items() if not q.guaranteed)
    low, high = None, None
    for images_seen in seen:
        with torch.no_grad():
            a, b = with_taps(state.task.teacher, [node])(images_seen)[1][0].aminmax()
        low, high = (a, b) if low is None else (0.9 * low + 0.1 * a, 0.9 * high + 0.1 * b)
    assert low is not None and high is not None
    reached = quantizer.limits()
    assert reached[1] - reached[0] == pytest.approx(float(high.clamp(min=0) - low.clamp(max=0)), rel=0.02)


def test_distillation_against_the_direct_formula() -> None:
    torch.manual_seed(0)
    q, p, t = torch.randn(6, 10), torch.randn(6, 10), 20.0
    a, b = torch.softmax(p / t, 1), torch.softmax(q / t, 1)
    kl = t**2 * (a * (a / b).log()).sum(1).mean()
    torch.testing.assert_close(distillation(q, p, t), kl)
    torch.testing.assert_close(distillation(q, p, t, "mean"), kl / 10)


def test_statistics_loss_is_that_of_the_batch_norms_inputs() -> None:
    """Against the code's hook on an unfolded network: MSE of mean and of biased variance, averaged over the layers."""
    model, x = build("residual"), images(8)
    terms = []

    def hook(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        terms.append(F.mse_loss(mean, module.running_mean) + F.mse_loss(var, module.running_var))  # type: ignore[arg-type]

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model(x)
    for module in model.modules():
        module._forward_hooks.clear()
    job = state_of(trace(model, images(1)))
    stats = job.task.batch_norms()
    found = statistics_loss(with_taps(job.task.teacher, list(stats), channel_moments)(x)[1], list(stats.values()))
    torch.testing.assert_close(found, torch.stack(terms).mean(), rtol=1e-3, atol=1e-5)


def test_a_dead_channel_has_no_say_in_the_statistics() -> None:
    torch.manual_seed(0)
    feature = torch.randn(8, 3, 4, 4, requires_grad=True)
    stats = BatchNormStats(
        torch.zeros(3), torch.tensor([1.0, 1e-9, 0.0]), torch.zeros(3), torch.tensor([1.0, 2.0, 3e-3])
    )
    loss = statistics_loss([channel_moments(feature * torch.tensor([1.0, 1e-9, 0.0]).view(1, 3, 1, 1))], [stats])
    loss.backward()
    assert float(loss.detach()) < 1.0 and torch.isfinite(feature.grad).all() and feature.grad.abs().max() < 1.0  # type: ignore[union-attr,arg-type]


class Plain(nn.Module):
    """Convolution, batch norm and a head: what is folded, and a layer that is not."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.head = layer, nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.layer(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, bias=False),
        nn.ConvTranspose2d(3, 6, 3, bias=False),
        nn.ConvTranspose2d(3, 6, 3, groups=3, bias=False),
    ],
    ids=["conv", "transposed", "grouped"],
)
def test_sgd_on_folded_weights_is_sgd_on_the_weights(layer: nn.Module) -> None:
    """Momentum and decay included, after several steps: g w, with w trained as it was, is w' trained folded."""
    torch.manual_seed(0)
    layer.reset_parameters()  # type: ignore[operator]
    model = Plain(layer)
    nn.init.uniform_(model.norm.weight, -2.0, 2.0)
    nn.init.uniform_(model.norm.running_var, 0.1, 4.0)  # type: ignore[arg-type]
    model.eval()
    job = state_of(trace(model, images(1)))
    teacher = job.task.teacher.requires_grad_(True)
    job.student.module = teacher  # no rounding: the rule is exact
    gains = folded_gains(job)
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    folded = FoldedSGD([{"params": [*gains, teacher.head.weight]}], gains, **options)
    original = torch.optim.SGD([model.layer.weight, model.head.weight], **options)
    x, y = images(8), torch.randint(5, (8,))
    for _ in range(4):
        for net, optimizer in ((model, original), (teacher, folded)):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    again, _ = fold(trace(model, images(1)))
    torch.testing.assert_close(teacher.layer.weight, again.layer.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(teacher.head.weight, model.head.weight, rtol=1e-4, atol=1e-6)


def test_layers_without_batch_norm_step_as_they_are_and_folded_biases_do_not_decay() -> None:
    job = state_of(graph("residual"))
    method = GDFQ()
    play = Play(of=method, plan=method.lengths(job.task))
    optimizer = play._optimizer(job)
    assert isinstance(optimizer, FoldedSGD) and len(optimizer.gains) == 4
    assert not any(p is attribute(job.student.module, "head.2.weight") for p in optimizer.gains)
    decays = [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert decays == [(1e-4, 6), (0.0, 4)]  # 5 weights and the head's bias; 4 biases that hold batch norm's mean


@pytest.mark.parametrize(
    ("at", "stage", "note"), [(4, 0, "interrupted after step 0 of 5"), (13, 1, "interrupted after step 5 of 10")]
)
def test_ctrl_c_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch, at: int, stage: int, note: str) -> None:
    calls = 0

    def counted(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return statistics_loss(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(gdfq, "statistics_loss", counted)
    quantized = quantize("residual", replace(QUICK, epochs=3, warm_up=1 / 3), "w8a8")
    assert quantized.report["interrupted"] and quantized.report["stages"][-1]["note"].startswith(note)
    assert len(quantized.report["stages"]) == stage + 1
    with torch.no_grad():
        assert torch.isfinite(quantized.module(images(4))).all() and quantized.module(images(4)).std() > 0


def test_nan_rolls_back_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def broken(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        return statistics_loss(*args) * (math.nan if calls > 12 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(gdfq, "statistics_loss", broken)
    stage = quantize("residual", replace(QUICK, epochs=3, warm_up=1.0)).report["stages"][0]
    assert stage["steps"] == 10 and "became NaN" in stage["note"]
    calls = 0
    report = quantize("residual", replace(QUICK, epochs=6, warm_up=1 / 6)).report
    assert "became NaN 3 times" in report["stages"][-1]["note"] and report["stages"][-1]["steps"] == 5


@pytest.mark.parametrize(
    ("effort", "card", "expected"),
    [
        ("best", CARD, (400, 200, 200, 0.01, 1e-4, 1e-3, 128)),
        ("best", replace(CARD, input=(3, 224, 224)), (400, 200, 16, 0.125, 1e-6, 1e-3, 128)),
        ("fast", CARD, (32, 5, 64, 0.01, 3e-4, 3e-3, 32)),
    ],
)
def test_plans(effort: str, card: Card, expected: tuple[float, ...]) -> None:
    task = Task(fold(graph("residual"))[0], QConfig.parse("w4a4"), card, effort)
    plan = GDFQ().lengths(task)
    assert dataclasses.astuple(plan) == expected
    assert GDFQ(epochs=7, lr_student=0.5).lengths(task) == replace(plan, epochs=7, lr_student=0.5)


@pytest.mark.parametrize(("card", "start"), [(CARD, 4), (replace(CARD, input=(3, 224, 224)), 50)])
def test_milestones_are_the_papers(card: Card, start: int) -> None:
    """Of 400 epochs the student's begin at 4 or 50, and the steps shrink after 100, 200 and 300 of all."""
    method, task = GDFQ(), Task(fold(graph("residual"))[0], QConfig.parse("w4a4"), card, "best")
    alone, _, play = method.plan(task)
    assert isinstance(play, Play) and alone.steps == start * 200 and play.steps == (400 - start) * 200
    lowered = [
        epoch
        for epoch in range(start, 399)
        if play.schedule((epoch + 1 - start) / (400 - start)) < 0.5 * play.schedule((epoch - start) / (400 - start))
    ]
    assert lowered == [99, 199, 299]
