"""The losses against their equations, written out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import build, images

from zaq.ir.capture import trace
from zaq.ir.taps import with_taps
from zaq.passes.fold import BatchNormStats, fold
from zaq.synth.losses import (
    RELATIONS,
    activation_loss,
    batch_norm_loss,
    batch_statistics_loss,
    channel_moments,
    crm,
    gram,
    jensen_shannon,
    l2_prior,
    output_discrepancy,
    relation_gaps,
    relative_discrepancy,
    sample_statistics_loss,
    standard,
    total_variation,
)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_crm_is_the_cosine_of_channels_over_batch_and_space(layout: torch.memory_format) -> None:
    f = torch.randn(4, 3, 5, 6)
    expected = torch.stack(
        [
            torch.stack([F.cosine_similarity(f[:, i].flatten(), f[:, j].flatten(), dim=0) for j in range(3)])
            for i in range(3)
        ]
    )
    torch.testing.assert_close(crm(f.to(memory_format=layout)), expected)
    torch.testing.assert_close(crm(f * torch.tensor([1.0, 7.0, 0.1]).view(1, 3, 1, 1)), expected)  # whatever the scale
    assert not torch.allclose(gram(f * 2), gram(f))


def test_crm_of_a_dead_channel_is_finite() -> None:
    f = torch.randn(2, 3, 4, 4, requires_grad=True)
    crm(f * torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)).sum().backward()
    assert torch.isfinite(f.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("relation", RELATIONS)
def test_relation_gaps(relation: str) -> None:
    p, q = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)], [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    gaps = relation_gaps(p, q, relation)
    assert gaps.shape == (2,) and (gaps > 0).all()
    assert torch.equal(relation_gaps(p, p, relation), torch.zeros(2))


def test_output_discrepancy_sums_classes_and_averages_the_rest() -> None:
    p, q = torch.zeros(5, 10), torch.full((5, 10), 0.5)
    assert float(output_discrepancy([p], [q])) == pytest.approx(5.0)
    dense = torch.full((5, 10, 3, 3), 0.5)
    assert float(output_discrepancy([torch.zeros_like(dense)], [dense])) == pytest.approx(5.0)


def test_outputs_of_several_scales_count_alike() -> None:
    """Each in units of its spread, and the whole in the mean unit: with equal spreads that is the plain mean."""
    p, error = torch.randn(64, 10), 0.1 * torch.randn(64, 10)
    gap = float(output_discrepancy([p], [p + error]))
    assert float(output_discrepancy([p, p], [p + error, p])) == pytest.approx(gap / 2, rel=0.1)
    boxes = 1000 * p[:, :, None, None]
    moved = boxes + 1000 * error[:, :, None, None]
    one, other = output_discrepancy([p, boxes], [p + error, boxes]), output_discrepancy([p, boxes], [p, moved])
    assert float(one) == pytest.approx(float(other), rel=0.1) and float(one) > 100 * gap
    constant = torch.ones(64, 3)
    assert float(output_discrepancy([p, constant], [p, constant + 1e-6])) < gap  # has no unit of its own


def test_a_student_that_always_answers_the_mean_is_off_by_one_spread() -> None:
    p = torch.randn(64, 10)
    mean = p.mean(0, keepdim=True).expand_as(p)
    assert float(relative_discrepancy([p], [mean])) == pytest.approx(1.0)
    assert float(relative_discrepancy([1000 * p, p], [1000 * mean, p])) == pytest.approx(0.5)


def test_activation_loss_falls_with_activation() -> None:
    assert float(activation_loss(torch.full((2, 3, 4, 4), -2.0))) == -2.0


@pytest.mark.parametrize("shape", [(8, 4, 6, 5), (32, 4)])
def test_moments_of_channels(shape: tuple[int, ...]) -> None:
    f = 3 * torch.randn(shape) + 100
    mean, var = channel_moments(f.contiguous(memory_format=torch.channels_last) if f.dim() == 4 else f)
    dims = [d for d in range(f.dim()) if d != 1]
    torch.testing.assert_close(mean, f.mean(dims))
    torch.testing.assert_close(var, f.var(dims, unbiased=False), rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(channel_moments, f.double().requires_grad_(True))


def test_batch_norm_loss_is_zero_on_its_own_statistics() -> None:
    f = torch.randn(256, 4, 8, 8)
    mean, std = f.mean((0, 2, 3)), f.std((0, 2, 3), unbiased=False)
    own = BatchNormStats(mean, std, mean, std)
    assert float(batch_norm_loss([channel_moments(f)] * 2, [own, own])) < 1e-8
    shifted = batch_norm_loss([channel_moments(f + std.view(1, -1, 1, 1))], [own])
    assert float(shifted) == pytest.approx(1.0, rel=1e-3)  # one deviation off


def unfolded(x: Tensor) -> tuple[list[Tensor], list[nn.BatchNorm2d], list[Tensor], list[BatchNormStats]]:
    """Batch norm's inputs in the network as it came, and the outputs of the layers of the folded one, with statistics.

    One channel is negative, one is dead.
    """
    model = build("residual")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight[1], norm.weight[2] = -0.7, 1e-12
    folded, _ = fold(trace(model, x))
    stats = {n.name: n.meta["bn"] for n in folded.graph.nodes if "bn" in n.meta}
    inputs: list[Tensor] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(x)
        return inputs, norms, with_taps(folded, list(stats))(x)[1], list(stats.values())


def test_statistics_of_the_folded_network_are_those_of_batch_norms_input() -> None:
    """ZeroQ's loss and DeepInversion's, as their papers have them, on the network before folding."""
    x = images(4)
    inputs, norms, features, stats = unfolded(x)
    alive = [0, 1, *range(3, 8)]
    zeroq = deep = 0.0
    for value, norm in zip(inputs, norms, strict=True):
        live = [*alive, *range(8, value.shape[1])]
        value, running_mean, running_var = value[:, live], norm.running_mean[live], norm.running_var[live] + norm.eps  # type: ignore[index]
        mean, std = value.mean((2, 3)), (value.var((2, 3)) + 1e-6).sqrt()
        zeroq += float(((mean - running_mean) ** 2 + (std - running_var.sqrt()) ** 2).sum() / len(value))
        var = value.var((0, 2, 3), unbiased=False)
        deep += float((value.mean((0, 2, 3)) - running_mean).norm() + (var - running_var).norm())
    assert float(sample_statistics_loss(features, stats)) == pytest.approx(zeroq, rel=1e-4)
    assert float(batch_statistics_loss([channel_moments(f) for f in features], stats)) == pytest.approx(deep, rel=1e-4)


def test_statistics_of_single_pixels_are_over_the_batch() -> None:
    x = torch.randn(512, 3)
    assert float(sample_statistics_loss([x, x[:, :, None, None]], [standard(3)] * 2)) < 0.05
    assert float(sample_statistics_loss([x + 2], [standard(3)])) == pytest.approx(12, rel=0.1)


def test_image_priors() -> None:
    x = torch.randn(2, 3, 4, 5)
    sums = [0.0] * 4
    for i in range(4):
        for j in range(5):
            for k, (di, dj) in enumerate([(0, 1), (1, 0), (1, -1), (1, 1)]):
                if i + di < 4 and 0 <= j + dj < 5:
                    sums[k] += float((x[:, :, i + di, j + dj] - x[:, :, i, j]).pow(2).sum())
    assert float(total_variation(x)) == pytest.approx(sum(s**0.5 for s in sums), rel=1e-5)
    assert float(total_variation(torch.ones(2, 3, 4, 4))) == 0
    assert float(l2_prior(x)) == pytest.approx(float(x.pow(2).sum().sqrt()), rel=1e-5)


def test_jensen_shannon() -> None:
    p, q = torch.randn(6, 10), torch.randn(6, 10)
    a, b = (p / 3).softmax(1), (q / 3).softmax(1)
    m = (a + b) / 2
    expected = 0.5 * (a * (a / m).log()).sum(1) + 0.5 * (b * (b / m).log()).sum(1)
    assert float(jensen_shannon(p, q)) == pytest.approx(float(expected.mean()), rel=1e-4)
    assert float(jensen_shannon(p, p)) == pytest.approx(0, abs=1e-6)
    far = 1e4 * torch.eye(2)
    assert float(jensen_shannon(far, far.flip(0))) == pytest.approx(0.6931, abs=1e-3)  # ln 2, and finite


def test_scores_count_beside_boxes_of_one_output() -> None:
    """Each channel in units of its own spread, along whichever dimension they lie."""
    p = torch.randn(32, 10, 20) * torch.tensor([100.0] * 4 + [1.0] * 6).view(1, 10, 1)
    boxes, scores = (torch.zeros(1, 10, 1) for _ in range(2))
    boxes[:, 0], scores[:, 9] = 30.0, 0.3
    for a, b, q in ((p, p + boxes, p + scores), (p.mT, (p + boxes).mT, (p + scores).mT)):
        for loss in (output_discrepancy, relative_discrepancy):
            assert float(loss([a], [b])) == pytest.approx(float(loss([a], [q])), rel=0.2)
    p.requires_grad_(True)
    output_discrepancy([p], [2 * p]).backward()
    assert p.grad is not None and torch.isfinite(p.grad).all()
