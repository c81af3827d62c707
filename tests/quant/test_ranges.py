"""Between which values a tensor's readers tell them apart."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import images, state_of

from zaq.ir.capture import trace
from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.ranges import told_apart

F = nn.functional
Reader = Callable[[Tensor], Tensor]
READERS: dict[str, tuple[Reader, tuple[float, float]]] = {
    "hardswish": (F.hardswish, (-3, math.inf)),
    "hardsigmoid": (F.hardsigmoid, (-3, 3)),
    "silu": (F.silu, (-10, math.inf)),
    "a swish in two pieces": (lambda x: x * x.sigmoid(), (-10, math.inf)),
    "gelu": (F.gelu, (-4, math.inf)),
    "sigmoid": (torch.sigmoid, (-8, 8)),
    "tanh": (torch.tanh, (-4.5, 4.5)),
    "relu behind a move": (lambda x: x.flatten(1).relu(), (0, math.inf)),
    "two": (lambda x: F.hardswish(x).sum() + F.hardsigmoid(x), (-3, math.inf)),
    "a sum beside": (lambda x: F.hardsigmoid(x) + x, (-math.inf, math.inf)),
    "the other's gate": (lambda x: x * (x + 1).sigmoid(), (-math.inf, math.inf)),
}


class Net(nn.Module):
    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.first, self.last, self.reader = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), reader

    def forward(self, x: Tensor) -> Tensor:
        y = self.reader(20 * self.first(x))
        return self.last(y) if y.dim() == 4 else y


def graph_of(name: str) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return trace(Net(READERS[name][0]).eval(), images(1))


@pytest.mark.parametrize("name", READERS)
def test_the_ends_are_those_of_the_readers(name: str) -> None:
    graph = graph_of(name)
    node = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.mul.Tensor)
    assert told_apart(node) == READERS[name][1]


@pytest.mark.parametrize("name", [n for n, (_, ends) in READERS.items() if math.isfinite(ends[0])])
def test_beyond_them_a_reader_gives_what_it_gives_there(name: str) -> None:
    reader, (low, high) = READERS[name]
    x = torch.linspace(-40, 40, 8001)[None, None]
    torch.testing.assert_close(reader(x.clamp(low, high)), reader(x), atol=5e-4, rtol=0)


@pytest.mark.parametrize("observer", ["minmax", "mse", "ema", "laplace"])
def test_a_range_ends_there_whatever_observes(observer: str) -> None:
    state = state_of(graph_of("hardswish"), "w8a8")
    quantizer = next(q for n, q in state.student.placement.activations.items() if q.known[0] == -3)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10 - 5
    quantizer.watch(observer)
    quantizer(x)
    quantizer.calibrate()
    low, high = quantizer.limits()
    assert -3.2 < low <= -2.8 and 5 < high < 40
    kept = F.hardswish(quantizer(x)) - F.hardswish(x.clamp(max=high))
    assert float(kept.detach().abs().max()) < 1.1 * quantizer.scale.item()


@pytest.mark.parametrize("observer", ["minmax", "mse", "laplace"])
def test_how_far_beyond_a_value_lies_counts_for_nothing(observer: str) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10 - 5
    limits = []
    for values in (x, x.clamp(min=-3)):
        quantizer = FakeQuantize(4, limits=(-3.0, math.inf))
        quantizer.watch(observer)
        torch.manual_seed(0)
        quantizer(values)
        quantizer.calibrate()
        limits.append(quantizer.limits())
    assert limits[0] == limits[1]
