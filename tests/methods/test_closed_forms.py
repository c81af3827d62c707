"""What each part of `dfq` and `aciq` is there for, on networks whose statistics come from data: without it, it is
worse.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toy import CARD, gratings, offsets, trained, unequal
from zoo import quantized_like

from zaq.api import Quantized
from zaq.config.bits import QConfig
from zaq.ir.nodes import attribute
from zaq.ir.taps import with_taps
from zaq.methods.aciq import ACIQ
from zaq.methods.dfq import DFQ
from zaq.quant.aciq import clip_range


def quantized(net: nn.Module, bits: QConfig, method: Any) -> Quantized:
    return quantized_like(net, gratings(2, 0)[0], bits, method, card=CARD)


def error(net: nn.Module, bits: QConfig, method: Any) -> float:
    """The squared error of the outputs on images that no statistics come from, as a share of their variance."""
    x = gratings(256, 77)[0]
    with torch.no_grad():
        expected, found = net(x), quantized(net, bits, method).module(x)
    return float((found - expected).pow(2).mean() / expected.var())


def with_a_dead_channel() -> nn.Module:
    """The toy network with a channel that batch norm switched off,
    and large weights that read it: nobody's function."""
    net = trained()
    with torch.no_grad():
        net.b[0].weight[:, 3] = 0  # type: ignore[index,union-attr]
        net.a[1].weight[3], net.a[1].bias[3] = 0.0, -1.0  # type: ignore[index,union-attr]
        net.b[0].weight[:, 3] = 40.0  # type: ignore[index,union-attr]
    return net


PARTS = {  # network, bits, with the part, without it, and how much less error the part leaves
    "equalization": (unequal, QConfig.parse("w8a8", weights="per_tensor"), DFQ(), DFQ(equalize=False), 0.01),
    "constants": (
        with_a_dead_channel,
        QConfig.parse("w6a8", weights="per_tensor"),
        DFQ(equalize=False),
        DFQ(equalize=False, constants=False),
        0.3,
    ),
    "absorption": (offsets, QConfig.parse("w8a4"), DFQ(), DFQ(absorb=False), 0.3),
    "analytic correction": (trained, QConfig.parse("w3a8"), DFQ(), DFQ(bias_correction="none"), 0.6),
    "analytic correction of offsets": (offsets, QConfig.parse("w3a8"), DFQ(), DFQ(bias_correction="none"), 0.1),
    "aciq's correction": (trained, QConfig.parse("w4a8"), ACIQ(), ACIQ(correct=False), 0.7),
    "aciq's correction of offsets": (offsets, QConfig.parse("w4a8"), ACIQ(), ACIQ(correct=False), 0.7),
}


@pytest.mark.parametrize("name", PARTS)
def test_each_part_takes_error_away(name: str) -> None:
    make, bits, whole, without, share = PARTS[name]
    assert error(make(), bits, whole) < share * error(make(), bits, without)


@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
def test_ranges_are_those_of_images_though_none_was_seen(distribution: str) -> None:
    """At 4 bits, behind ReLUs whose statistics batch norm has: where the closed form clips what images cause."""
    net, x = trained(), gratings(256, 77)[0]
    job = quantized(net, QConfig.parse("w8a4"), ACIQ(distribution=distribution)).state
    placed = {job.student.placement.tensors[n]: q for n, q in job.student.placement.activations.items() if q.bits == 4}
    assert len(placed) == 3
    for value, q in zip(with_taps(job.task.teacher, list(placed))(x)[1], placed.values(), strict=True):
        gap = (value - value.mean()).abs().mean() if distribution == "laplace" else value.std()
        expected = clip_range(float(value.mean()), float(gap), 4, 0.0, float(value.max()), distribution)
        assert q.limits() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("bits", ["w2a8", "w3a8", "w4a8"])
@pytest.mark.parametrize("net", [trained, offsets])
def test_rounded_channels_have_their_deviation_again(net: Callable[[], nn.Module], bits: str) -> None:
    """ACIQ, section 3.3: a channel of a rounded weight is scaled until its deviation is what it was."""

    def ratios(method: ACIQ) -> torch.Tensor:
        job = quantized(net(), QConfig.parse(bits), method).state
        pairs = [
            (
                q(attribute(job.student.module, name)).flatten(1).std(1),
                attribute(job.task.teacher, name).flatten(1).std(1),
            )
            for name, q in job.student.placement.weights.items()
            if q.bits < 8  # at 8 bits room for the accumulator comes first
        ]
        return torch.cat([a / b - 1 for a, b in pairs]).abs()

    assert float(ratios(ACIQ()).max()) < 1e-4
    assert float(ratios(ACIQ(correct=False)).max()) > 0.005


def test_a_channel_of_more_deviation_has_more_bits() -> None:
    """ACIQ, section 3.2: the levels that a channel's weights take, in a layer whose channels differ by a factor of
    1000.
    """
    job = quantized(unequal(), QConfig.parse("w4a8"), ACIQ()).state
    weight = attribute(job.student.module, "a.0.weight")
    levels = [len(row.unique()) for row in job.student.placement.weights["a.0.weight"](weight).flatten(1)]
    order = attribute(job.task.teacher, "a.0.weight").flatten(1).std(1).argsort().tolist()
    assert max(levels[i] for i in order[:4]) <= 4 and min(levels[i] for i in order[-4:]) > 32
