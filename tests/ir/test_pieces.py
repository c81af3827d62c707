"""Functions written out in pieces, as programs and files have them, become one operation of the same values."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zaq.ir.capture import trace

aten = torch.ops.aten
X = (2, 3, 6, 7)


class Written(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("three", torch.tensor(3.0))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x), self.three)


def centred(x: Tensor, dims: list[int]) -> Tensor:
    return x - x.mean(dims, keepdim=True)


WRITTEN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], object]] = {
    "hard swish": (lambda x, c: x * (x + c).clamp(0, 6) / 6, aten.hardswish.default),
    "hard swish, scaled": (lambda x, c: (x * nn.functional.relu6(c + x)) * (1 / 6), aten.hardswish.default),
    "hard swish of a sigmoid": (lambda x, c: x * (x / 6 + 0.5).clamp(0, 1), aten.hardswish.default),
    "hard sigmoid": (lambda x, c: (x + c).clamp(0, 6) / 6, aten.hardsigmoid.default),
    "gelu": (lambda x, c: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), aten.gelu.default),
    "gelu, another order": (lambda x, c: 0.5 * (x * (torch.erf(x * math.sqrt(0.5)) + 1)), aten.gelu.default),
    "gelu by tanh": (
        lambda x, c: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        aten.gelu.default,
    ),
    "layer norm": (
        lambda x, c: centred(x, [-1]) / (centred(x, [-1]) ** 2).mean(-1, keepdim=True).add(1e-5).sqrt(),
        aten.layer_norm.default,
    ),
    "instance norm": (
        lambda x, c: centred(x, [2, 3]) / (centred(x, [2, 3]) ** 2).mean([2, 3], keepdim=True).add(1e-5).sqrt(),
        aten.instance_norm.default,
    ),
    "instance norm by an inverse": (
        lambda x, c: (
            centred(x, [2, 3])
            * (torch.tensor(1.0) / (centred(x, [2, 3]) ** 2).mean([2, 3], keepdim=True).add(1e-5).sqrt())
        ),
        aten.instance_norm.default,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_in_pieces_is_one(name: str) -> None:
    function, target = WRITTEN[name]
    torch.manual_seed(0)
    model = Written(function).eval()
    graph = trace(model, torch.zeros(X))
    x = 3 * torch.randn(X)
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [aten.conv2d.default, target]
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "another clamp": lambda x, c: x * (x + c).clamp(0, 5) / 6,
    "another slope": lambda x, c: (x * 0.2 + 0.5).clamp(0, 1),
    "another tensor": lambda x, c: x.flip(3) * (x + c).clamp(0, 6) / 6,
    "a biased variance": lambda x, c: centred(x, [-1]) / x.var(-1, keepdim=True).add(1e-5).sqrt(),
    "another inverse": lambda x, c: (
        centred(x, [2, 3]) * (torch.tensor(2.0) / (centred(x, [2, 3]) ** 2).mean([2, 3], keepdim=True).add(1e-5).sqrt())
    ),
    "another mean": lambda x, c: centred(x, [-1]) / (centred(x, [-2]) ** 2).mean(-1, keepdim=True).add(1e-5).sqrt(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_another_function_stays(name: str) -> None:
    torch.manual_seed(0)
    model = Written(OTHERS[name]).eval()
    graph = trace(model, torch.zeros(X))
    known = {target for _, target in WRITTEN.values()}
    assert not known.intersection(n.target for n in graph.graph.nodes)
    x = 3 * torch.randn(X)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_layer_norm_takes_its_own_scale_and_shift() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.w, self.b = nn.Linear(7, 5), nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            x = centred(self.linear(x), [-1])
            return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.w + self.b

    torch.manual_seed(0)
    model = Norm().eval()
    graph = trace(model, torch.zeros(X))
    assert sum(n.target in (aten.mul.Tensor, aten.add.Tensor) for n in graph.graph.nodes) == 0
    x = torch.randn(X)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
