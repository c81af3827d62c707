"""Density and coverage against the authors' own code, their expectations, and by hand."""

import contextlib
import io
import math

import numpy as np
import prdc
import pytest
import torch
from torch import nn
from zoo import SHAPE, build, images, traced

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.task import Task
from zaq.errors import UserError
from zaq.ir.capture import trace
from zaq.passes.fold import fold
from zaq.synth import density
from zaq.synth.density import features, measure

NAMES = ("precision", "recall", "density", "coverage")


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize("rows", [7, 10**6])
def test_they_are_the_authors(shift: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-6, in however many parts; with equal images among them."""
    monkeypatch.setattr(density, "DISTANCES", 150 * rows)
    g = torch.Generator().manual_seed(0)
    real, drawn = torch.randn(201, 8, generator=g), torch.randn(150, 8, generator=g) + shift
    drawn[:3], real[7] = real[:3], real[8]
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = prdc.compute_prdc(real.double().numpy(), drawn.double().numpy(), nearest_k=5)
    found = measure(real, drawn)
    assert {n: getattr(found, n) for n in NAMES} == pytest.approx(wanted, abs=1e-6)


def test_expectations_on_equal_distributions() -> None:
    """Coverage 1 - C(N-1, k) / C(M+N-1, k), density 1 (Naeem et al., section 3.3), over many draws."""
    n, m, k = 60, 40, 5
    g = torch.Generator().manual_seed(0)
    found = [measure(torch.randn(n, 4, generator=g), torch.randn(m, 4, generator=g), k) for _ in range(150)]
    assert found[0].expected == pytest.approx(1 - math.comb(n - 1, k) / math.comb(m + n - 1, k))
    coverage = np.array([f.coverage for f in found])
    assert abs(coverage.mean() - found[0].expected) < 3 * coverage.std() / math.sqrt(len(coverage))
    assert np.mean([f.density for f in found]) == pytest.approx(1, abs=0.05)


def test_by_hand() -> None:
    """On a line, one neighbour: one drawn image beside the first two real ones, and none beside the others."""
    real, drawn = torch.tensor([[0.0], [1.0], [10.0], [12.0]]), torch.tensor([[0.5], [30.0], [31.0]])
    found = measure(real, drawn, 1)
    assert (found.precision, found.coverage, found.density) == (1 / 3, 2 / 4, 2 / 3)
    assert found.recall == 1  # the ball of 0.5 reaches to 30
    assert not found.low and measure(real, drawn + 100, 1).low
    assert "coverage 0.500" in str(found)


def test_too_few() -> None:
    with pytest.raises(UserError, match="5 images are too few: with 5 neighbours, 6 are the least"):
        measure(torch.randn(9, 2), torch.randn(5, 2))


def test_features_are_what_the_last_layer_reads() -> None:
    """Of a classifier the pooled features; of a network that ends in a convolution their mean over pixels."""
    net, x = build("residual"), images(6)
    with torch.no_grad():
        wanted = net.head[:2](net.down(torch.relu((y := net.stem(x)) + net.body(y))))
    task = Task(fold(traced("residual"))[0], QConfig.parse("w8a8"), Card(input=SHAPE))
    torch.testing.assert_close(features(task, x.split(4)), wanted, atol=1e-4, rtol=1e-4)

    painter = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    task = Task(fold(trace(painter, x[:1]))[0], QConfig.parse("w8a8"), Card(input=SHAPE))
    torch.testing.assert_close(features(task, [x]), painter[:2](x).mean((2, 3)).detach(), atol=1e-5, rtol=1e-4)
