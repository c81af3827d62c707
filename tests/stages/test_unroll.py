"""Unrolled steps: their gradient against finite differences, through the student's own rounding, and in a game."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from zoo import CARD, calibrated, quantized_net

from zaq.engine.work import Work
from zaq.ir.taps import with_taps
from zaq.methods.zaq import ZAQ
from zaq.quant.op import fake_quantize
from zaq.stages.training import student_optimizer
from zaq.stages.unroll import answered, unrolled
from zaq.synth.losses import output_discrepancy

RATES = {"a": torch.tensor(0.05).double(), "b": torch.tensor([0.01, 0.03, 0.02]).double()}


def game(x: Tensor, theta: dict[str, Tensor]) -> Tensor:
    """Something smooth that both sides matter to, (4,) and {a: (2, 2), b: (3,)} -> ()."""
    return (theta["a"] @ x[:2] - x[2:]).tanh().pow(2).sum() + (theta["b"] * x.sum()).sin().sum() + x[0] ** 2


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_gradient_runs_through_every_step(steps: int) -> None:
    """d f_K / dG, the second term included, to six digits."""
    torch.manual_seed(0)
    theta = {"a": torch.randn(2, 2).double(), "b": torch.randn(3).double()}

    def value(x: Tensor) -> Tensor:
        return game(x, unrolled(lambda now: game(x, now), theta, RATES, steps))

    x = torch.randn(4).double().requires_grad_()
    (found,) = torch.autograd.grad(value(x), x)
    eye, h = torch.eye(4).double(), 1e-5
    wanted = torch.stack([(value(x.detach() + h * e) - value(x.detach() - h * e)) / (2 * h) for e in eye]).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    kept = unrolled(lambda now: game(x, now), theta, RATES, steps)
    (first_term,) = torch.autograd.grad(game(x, {n: p.detach() for n, p in kept.items()}), x)
    assert torch.allclose(first_term, found, rtol=1e-6) == (steps == 0)


def test_a_step_moves_by_its_rate() -> None:
    """On the mean over a tensor, whatever the size of the gradient: as Adam's first."""
    theta = {"a": torch.ones(2, 2).double(), "b": torch.randn(3).double()}
    x = torch.tensor([0.3, -0.2, 0.5, 0.1]).double()
    moved = unrolled(lambda now: 1e3 * game(x, now), theta, RATES, 1)
    assert float((moved["a"] - theta["a"]).detach().square().mean().sqrt()) == pytest.approx(0.05)
    for _ in range(50):
        theta = {n: p.detach() for n, p in unrolled(lambda now: game(x, now), theta, RATES, 1).items()}
    assert game(x, theta) < game(x, {"a": torch.ones(2, 2).double(), "b": theta["b"]})


@pytest.mark.parametrize("axis", [-1, 0])
def test_rounding_can_be_differentiated_twice(axis: int) -> None:
    """Straight-through and LSQ, against the same written in operations that torch differentiates itself."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, requires_grad=True)
    scale = (0.2 + torch.rand(1 if axis < 0 else 4)).requires_grad_()
    zero = torch.zeros(len(scale), dtype=torch.int32)
    v, w = torch.randn(4, 6), torch.randn(len(scale))

    def plain(x: Tensor, scale: Tensor) -> Tensor:
        step = scale if axis < 0 else scale[:, None]
        r = x / step
        return (r + (r.round() - r).detach()).clamp(-3, 3) * step

    def twice(rounded: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        loss = (rounded(x, scale) * v).sin().sum()
        of_x, of_scale = torch.autograd.grad(loss, (x, scale), create_graph=True)
        return torch.autograd.grad((of_x * v.flip(0)).sum() + (of_scale * w).sum(), (x, scale))

    for found, wanted in zip(twice(lambda x, s: fake_quantize(x, s, zero, axis, -3, 3)), twice(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [False, True])
def test_a_student_answers_as_it_would_learn(weights: bool) -> None:
    """After some steps its answer lies nearer to the teacher, and the student is where it was."""
    state = calibrated("residual")
    optimizer = student_optimizer(state.student, 5e-3, 1e-4)
    graph, before = with_taps(state.student.module, []), state.student.snapshot()
    torch.manual_seed(0)
    images = state.task.noise(16).requires_grad_()
    p, _ = state.task.teacher_at()(images)

    def loss(student: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]) -> Tensor:
        return output_discrepancy(p, student(images)[0])

    gaps = [loss(answered(graph, optimizer, loss, steps, weights, Work())) for steps in (0, 3)]
    assert gaps[1] < gaps[0]
    slopes = [torch.autograd.grad(gap, images, retain_graph=True)[0] for gap in gaps]
    assert slopes[1].isfinite().all() and not torch.allclose(slopes[0], slopes[1], rtol=1e-2)
    assert all(torch.equal(v, before[k]) for k, v in state.student.snapshot().items())


def test_a_game_with_it_is_another_one() -> None:
    losses = []
    for options in ({}, {"unroll": 2}):
        method = ZAQ(warm_up=1, rounds=1, latent=16, width=8, q_steps=0, beta=0.0, lr_student=5e-3, **options)  # type: ignore[arg-type]
        rows = quantized_net("residual", "w3a3", method, card=CARD).journal.log.rows
        losses.append(next(r["loss_g"] for r in rows if "loss_g" in r))
    assert losses[1] > losses[0]  # minus what is left when the student has answered
