"""The published order of the methods, on a network trained here: by how far the outputs on real images are off."""

from typing import Any

import pytest
import torch
from torch import nn
from toy import CARD, gratings, trained, unequal
from zoo import quantized_like

from zaq.config.bits import QConfig
from zaq.methods.aciq import ACIQ
from zaq.methods.dfq import DFQ
from zaq.methods.rtn import RTN
from zaq.methods.zaq import ZAQ

IMAGES, LABELS = gratings(1000, seed=1)


def measured(model: nn.Module, method: Any, bits: str, weights: str | None = None) -> tuple[float, float]:
    """Mean distance of the outputs to the float model's, and accuracy in percent."""
    quantized = quantized_like(model, IMAGES[:1], QConfig.parse(bits, weights=weights), method, card=CARD)
    with torch.no_grad():
        p, q = model(IMAGES), quantized.module(IMAGES)
    return float((p - q).abs().mean()), 100 * float((q.argmax(1) == LABELS).float().mean())


def test_the_toy_is_learned_and_its_twin_computes_the_same() -> None:
    with torch.no_grad():
        p, q = trained()(IMAGES), unequal()(IMAGES)
    assert (p.argmax(1) == LABELS).float().mean() > 0.95
    torch.testing.assert_close(p, q, atol=1e-3, rtol=1e-3)


def test_dfq_saves_what_rtn_loses_per_tensor() -> None:
    for weights in ("per_tensor", "per_tensor_affine"):
        rtn, dfq = (measured(unequal(), m, "w6a8", weights) for m in (RTN(), DFQ()))
        assert dfq[0] < 0.5 * rtn[0] and dfq[1] >= rtn[1]


def test_training_beats_rounding_at_w3a3() -> None:
    """(Where zeroq stands between them takes real images to see: tests/test_shared.py.)"""
    rtn, adversarial = (measured(trained(), m, "w3a3") for m in (RTN(), ZAQ(warm_up=60, rounds=15)))
    assert adversarial[0] < 0.7 * rtn[0] and adversarial[1] >= rtn[1] - 0.5, (adversarial, rtn)


def test_aciq_beats_rtn_at_w4a4_and_each_part_of_it_counts() -> None:
    rtn = measured(trained(), RTN(), "w4a4")
    whole, plain = (measured(trained(), m, "w4a4") for m in (ACIQ(), ACIQ(allocate=False, correct=False)))
    assert whole[0] < plain[0] and whole[0] < rtn[0], (whole, plain, rtn)


@pytest.mark.parametrize("method", [RTN(), DFQ(), ACIQ()])
def test_eight_bits_are_enough(method: Any) -> None:
    with torch.no_grad():
        expected = 100 * float((trained()(IMAGES).argmax(1) == LABELS).float().mean())
    assert measured(trained(), method, "w8a8")[1] >= expected - 1.5
