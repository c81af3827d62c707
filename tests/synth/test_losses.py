"""The losses against their equations, written out."""

import pytest
import torch
from torch.nn import functional as F

from zaq.passes.fold import BatchNormStats
from zaq.synth.losses import RELATIONS, activation_loss, batch_norm_loss, crm, gram, output_discrepancy, relation_gaps


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_crm_is_the_cosine_of_channels_over_batch_and_space(layout: torch.memory_format) -> None:
    f = torch.randn(4, 3, 5, 6)
    expected = torch.stack(
        [torch.stack([F.cosine_similarity(f[:, i].flatten(), f[:, j].flatten(), dim=0) for j in range(3)]) for i in range(3)]
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
    assert float(output_discrepancy([p, p], [q, p])) == pytest.approx(2.5)


def test_activation_loss_falls_with_activation() -> None:
    assert float(activation_loss(torch.full((2, 3, 4, 4), -2.0))) == -2.0


def test_batch_norm_loss_is_zero_on_its_own_statistics() -> None:
    f = torch.randn(256, 4, 8, 8)
    mean, std = f.mean((0, 2, 3)), f.std((0, 2, 3), unbiased=False)
    own = BatchNormStats(mean, std, mean, std)
    assert float(batch_norm_loss([f, f], [own, own])) < 1e-8
    shifted = batch_norm_loss([f + std.view(1, -1, 1, 1)], [own])
    assert float(shifted) == pytest.approx(1.0, rel=1e-3)  # one deviation off
