"""What torch.export spells in several ways has one, and computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import images

from zaq.errors import TraceError
from zaq.ir.capture import trace
from zaq.ir.nodes import attribute

aten = torch.ops.aten
SHAPE = (4, 6, 8)  # tokens of a picture, say: (C, T, D)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x[:, :2], x[:, 1:3], x[:, 2:]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(6, 6), scale=0.5)


class Pieces(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        c, d = x.split([1, 3], -3)
        e, *_ = x.unbind(2)
        return a * b + c + d[:, :1] + e[:, :1, None]


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.dropout(self.first(x), 0.5, self.training))


class PlainProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class StandardizedWeight(nn.Module):
    """And a mask that is filled in place, as Swin's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(6, 8)
        mask[2:] = 1
        return F.conv2d(
            x + mask, (self.weight - self.weight.mean((1, 2, 3), True)) / self.weight.std((1, 2, 3), keepdim=True)
        )


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x.contiguous()[:, :, :], (0, 0)).clone().reshape(x.shape[0], 4, 6, 8) + 0 + 1


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, (3, 4)) + F.adaptive_avg_pool2d(x, 1)


class SiLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Einstein(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nctd,ncsd->ncts", x * 0.5, x)


SPELT: list[tuple[type[nn.Module], list[object]]] = [
    (Attention, [aten.matmul.default, aten.mul.Tensor, aten.add.Tensor, aten.softmax.int, aten.matmul.default]),
    (Pieces, [aten.mul.Tensor, *[aten.add.Tensor] * 3]),
    (Rows, [aten.linear.default, aten.linear.default]),
    (PlainProduct, [aten.linear.default]),
    (StandardizedWeight, [aten.add.Tensor, aten.conv2d.default]),
    (Nothing, [aten.add.Tensor]),
    (Pooled, [aten.avg_pool2d.default, aten.mean.dim, aten.add.Tensor]),
    (SiLU, [aten.sigmoid.default, aten.mul.Tensor]),
    (Einstein, [aten.mul.Tensor, aten.matmul.default]),
]
MOVED = {
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
}


@pytest.mark.parametrize(("net", "operations"), SPELT, ids=[net.__name__ for net, _ in SPELT])
def test_one_spelling_of_the_same(net: type[nn.Module], operations: list[object]) -> None:
    torch.manual_seed(0)
    model, x = net().eval(), torch.randn(3, *SHAPE)
    graph = trace(model, torch.zeros(1, *SHAPE))
    torch.testing.assert_close(graph(x), model(x), atol=1e-6, rtol=1e-5)
    found = [
        n.target
        for n in graph.graph.nodes
        if n.op == "call_function" and n.target not in MOVED and "sym_" not in str(n.target)
    ]
    assert [t for t in found if "aten" in str(t)] == operations


def test_a_linear_layer_reads_rows() -> None:
    graph = trace(Rows().eval(), torch.zeros(1, *SHAPE))
    layers = [n for n in graph.graph.nodes if n.target is aten.linear.default]
    assert [n.meta["val"].dim() for n in layers] == [2, 2]
    assert layers[1].args[0] is layers[0]  # rows stay rows where nothing reads them as tokens


def test_computed_weights_are_parameters_and_masks_are_not() -> None:
    graph = trace(StandardizedWeight().eval(), torch.zeros(1, *SHAPE))
    (layer,) = [n for n in graph.graph.nodes if n.target is aten.conv2d.default]
    weight = attribute(graph, str(layer.args[1].target))
    assert isinstance(weight, nn.Parameter) and weight.detach().mean().abs() < 1e-6
    assert [tuple(b.shape) for b in graph.buffers()] == [(6, 8)]


def test_what_would_make_the_file_large_stays_a_computation() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 64))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean() + self.table.expand(2**13, 64).sin()

    graph = trace(Table().eval(), torch.zeros(1, *SHAPE))
    assert sum(p.numel() for p in graph.parameters()) == 64


@pytest.mark.parametrize("alpha", [-1, 0.5, 3])
@pytest.mark.parametrize("operation", [torch.add, torch.sub])
def test_the_factor_of_a_sum_is_an_operation(operation: Callable[..., Tensor], alpha: float) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return operation(x.relu(), x.sigmoid(), alpha=alpha)

    graph, x = trace(Net().eval(), images(1)), images(3)
    torch.testing.assert_close(graph(x), Net()(x))
    assert not any("alpha" in node.kwargs for node in graph.graph.nodes)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, divisor_override=1), nn.AvgPool2d((3, 2), 2, 1, divisor_override=5)])
def test_the_divisor_of_a_pooling_is_a_factor(pool: nn.Module) -> None:
    graph, x = trace(nn.Sequential(pool).eval(), images(1)), images(3)
    torch.testing.assert_close(graph(x), pool(x))
    (pooling,) = [n for n in graph.graph.nodes if n.target is torch.ops.aten.avg_pool2d.default]
    assert len(pooling.args) < 7 and not pooling.kwargs


def test_a_divisor_that_is_not_known_is_refused() -> None:
    with pytest.raises(TraceError, match="ceil_mode with a divisor of its own"):
        trace(nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=2)).eval(), images(1))


def test_no_node_is_called_as_a_container_calls_its_own() -> None:
    class Net(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.relu()

    graph, x = trace(Net().eval(), images(1)), images(3)
    assert torch.equal(graph(x), x.relu())
    assert not any(hasattr(nn.ModuleDict, node.name) for node in graph.graph.nodes)
