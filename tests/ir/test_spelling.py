"""What torch.export spells in several ways has one, and computes the same."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
