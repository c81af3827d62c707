"""Layers that share a parameter, as a pyramid's head does: every pass leaves alone what another layer reads too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from toy import CARD, gratings, shared_head

from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.ir.capture import trace
from zaq.methods.aciq import ACIQ
from zaq.methods.dfq import DFQ
from zaq.methods.rtn import RTN
from zaq.passes.absorb import absorb, absorb_constants
from zaq.passes.equalize import equalize
from zaq.passes.fold import fold


def errors(method: Callable[..., None]) -> list[float]:
    """The relative squared error of each output at w8a8."""
    graph, x = trace(shared_head(), gratings(2, 0)[0]), gratings(64, 99)[0]
    quantized = quantize_graph(graph, QConfig.parse("w8a8"), method, card=CARD)
    with torch.no_grad():
        pairs = zip(graph(x), quantized.module(x), strict=True)
        return [float((a - b).pow(2).mean() / a.pow(2).mean()) for a, b in pairs]


@pytest.mark.parametrize("method", [DFQ(), ACIQ()], ids=["dfq", "aciq"])
def test_a_head_read_by_two_maps_keeps_both_outputs(method: Callable[..., None]) -> None:
    for found, rtn in zip(errors(method), errors(RTN()), strict=True):
        assert found < 3 * rtn + 1e-4


class SharedBias(nn.Module):
    """Two layers with weights of their own and one bias, which also is all that they share."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 8, 1) for n in (3, 8, 8, 8))
        self.c.bias = self.b.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class TiedWeight(nn.Module):
    """An autoencoder whose decoder is its encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.conv_transpose2d(F.relu(self.b(F.relu(self.a(x)))), self.b.weight))


class ComputedWeight(nn.Module):
    """A layer whose weight and bias are made by others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight, self.c = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(F.conv2d(F.relu(self.a(x)), self.weight.tanh(), self.weight.sum((1, 2, 3)))))


@pytest.mark.parametrize("net", [shared_head, SharedBias, TiedWeight, ComputedWeight])
@pytest.mark.parametrize("rewrite", [equalize, absorb_constants])
def test_the_function_stays(net: Callable[[], nn.Module], rewrite: Callable[[GraphModule], object]) -> None:
    torch.manual_seed(0)
    x = gratings(8, 5)[0]
    graph, _ = fold(trace(net(), x))
    found = rewrite(graph)
    assert isinstance(found, tuple)
    with torch.no_grad():
        torch.testing.assert_close(found[0](x), graph(x), atol=1e-5, rtol=1e-5)


def test_offsets_do_not_move_into_a_shared_bias() -> None:
    x = gratings(8, 5)[0]
    graph, _ = fold(trace(shared_head(), x))
    new, moved = absorb(graph)
    assert moved == 0
    with torch.no_grad():
        torch.testing.assert_close(new(x), graph(x))
