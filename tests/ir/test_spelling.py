"""What torch.export spells in several ways has one, and computes the same."""

import math
from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import images

from zaq.errors import TraceError
from zaq.export.onnx import to_onnx
from zaq.export.program import program_of
from zaq.ir.capture import from_exported, quiet, trace
from zaq.ir.nodes import attribute, pad_value
from zaq.ir.ops import CLAMPS

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


class Same(nn.Module):
    """Odd and even kernels, strides and groups that `same` and `valid` go with, in one, two and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(1, 2))
        self.even = nn.Conv2d(4, 4, (4, 3), padding="same", groups=2)
        self.valid = nn.Conv2d(4, 4, 3, padding="valid", stride=2)
        self.line, self.volume = nn.Conv1d(4, 4, 4, padding="same"), nn.Conv3d(1, 2, 2, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.valid(self.even(self.odd(x)))
        z: Tensor = self.volume(self.line(y.flatten(2)).unsqueeze(1).unsqueeze(-1))
        return z


def test_padding_is_in_pixels() -> None:
    torch.manual_seed(0)
    graph, x = trace(model := Same().eval(), images(1)), images(3)
    torch.testing.assert_close(graph(x), model(x))
    called = [n for n in graph.graph.nodes if n.op == "call_function"]
    layers = [n for n in called if "conv" in str(n.target)]
    kinds = [aten.conv2d.default] * 3 + [aten.conv1d.default, aten.conv3d.default]
    assert [n.target for n in layers] == kinds
    assert [n.args[4] for n in layers] == [[1, 4], [0, 0], [0, 0], [0], [0, 0, 0]]
    pads = [n.args[1] for n in called if n.target is aten.constant_pad_nd.default]
    assert pads == [[1, 1, 1, 2], [1, 2], [0, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("sides", "value", "pool", "spelt"),
    [
        ((1, 1, 1, 1), -math.inf, (3, 2), "pool"),
        ((0, 0, 1, 1), -math.inf, (2, 2), "pool"),
        ((0, 1, 0, 1), -math.inf, (3, 2), "edge"),
        ((2, 1, 1, 0), -math.inf, (3, 1), "edge"),
        ((0, 1, 0, 1), torch.finfo(torch.float32).min, (2, 2), "edge"),
        ((0, 1, 0, 1), -1e9, (3, 2), "edge"),
        ((0, 1, 0, 1), -math.inf, (3, 2, 0, 2), "as it was"),  # dilated
        ((0, 2, 0, 2), -math.inf, (2, 2), "as it was"),  # a window of nothing but padding is minus infinity
        ((0, 1, 0, 1), 0.0, (3, 2), "as it was"),
        ((0, 1, 0, 1), -3.0, (3, 2), "as it was"),
    ],
)
def test_a_max_pool_pads_with_no_number(
    sides: tuple[int, ...], value: float, pool: tuple[int, ...], spelt: str
) -> None:
    """What is less than any value would be all that a range of the padded tensor has room for."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.pad(x - 5, sides, value=value), *pool)

    graph, x = trace(Net().eval(), images(1)), images(3)
    assert torch.equal(graph(x), Net()(x))
    pads = [n for n in graph.graph.nodes if n.target in (aten.pad.default, aten.constant_pad_nd.default)]
    (pooling,) = [n for n in graph.graph.nodes if n.target is aten.max_pool2d.default]
    assert [pad_value(n) for n in pads] == {"pool": [], "edge": [None], "as it was": [value]}[spelt]
    own = pooling.args[3] if len(pooling.args) > 3 else [0, 0]
    assert isinstance(own, list) and any(own) == (spelt == "pool")


class Everything(nn.Module):
    """What `run_decompositions` takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2))
        self.up, self.norm, self.groups = nn.ConvTranspose2d(8, 8, 2, 2), nn.LayerNorm(16), nn.GroupNorm(2, 8)
        self.head, self.plain = nn.Linear(8, 6), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(F.silu(self.groups(self.norm(self.up(self.first(x))))), (2, 2))
        rows = y.flatten(2).transpose(1, 2)
        seen = F.scaled_dot_product_attention(rows[:, None], rows[:, None], rows[:, None])[:, 0]
        return self.plain(self.head(seen.mean(1)) * 2).log_softmax(1).softmax(1)


def test_a_decomposed_program_is_spelt_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = Everything().eval(), images(3)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with quiet():
        plain, taken_apart = from_exported(program), from_exported(program.run_decompositions())
    torch.testing.assert_close(taken_apart(x), model(x), atol=1e-6, rtol=1e-5)
    kinds = {
        aten.conv2d.default, aten.batch_norm.default, aten.hardtanh.default, aten.max_pool2d.default,
        aten.conv_transpose2d.input, aten.layer_norm.default, aten.group_norm.default, aten.sigmoid.default,
        aten.avg_pool2d.default, aten.linear.default, aten.log_softmax.int, aten.softmax.int, aten.matmul.default,
    }  # fmt: skip
    found = [{n.target for n in g.graph.nodes} for g in (plain, taken_apart)]
    assert kinds <= found[0] and kinds <= found[1]
    assert {str(n.target) for n in taken_apart.graph.nodes} >= {"head.weight", "plain.weight", "first.0.weight"}


def test_a_product_taken_apart_that_has_no_weight_is_a_product() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x.mean((2, 3))
            return torch.addmm(a[0], a, a.T @ a) + a @ a.t().contiguous() @ a

    x = images(3)
    program = torch.export.export(Net().eval(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with quiet():
        graph = from_exported(program.run_decompositions())
    torch.testing.assert_close(graph(x), Net()(x))
    assert not {aten.mm.default, aten.addmm.default, aten.linear.default} & {n.target for n in graph.graph.nodes}


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_without_statistics_takes_the_batchs(affine: bool, decomposed: bool) -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False, affine=affine)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval(), images(3)
    if affine:
        nn.init.normal_(norm.weight)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with quiet():
        graph = from_exported(program.run_decompositions() if decomposed else program)
    torch.testing.assert_close(graph(x), model(x), atol=1e-5, rtol=1e-4)
    assert aten.batch_norm.default not in {n.target for n in graph.graph.nodes}
    assert any("takes those of the batch it is given" in note for note in graph.meta["notes"])


class Masked(nn.Module):
    """A mask of infinity that is stored, one that is made, both ends of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((16, 16), -math.inf).triu(1))
        self.register_buffer("most", torch.tensor([math.inf, 0.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.zeros(16, 16).masked_fill(torch.ones(16, 16).tril() == 0, -math.inf)
        return (x + self.mask).softmax(-1) + (x + made[None]).softmax(-1), torch.minimum(x[..., :2], self.most)


def test_a_mask_of_infinity_is_finite_and_filled() -> None:
    graph, x = trace(Masked().eval(), images(1)), images(3)
    for ours, theirs in zip(graph(x), Masked()(x), strict=True):
        assert torch.equal(ours, theirs)
    assert all(bool(v.isfinite().all()) for v in graph.state_dict().values() if v.is_floating_point())


def test_no_node_is_called_as_a_container_calls_its_own() -> None:
    class Net(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.relu()

    graph, x = trace(Net().eval(), images(1)), images(3)
    assert torch.equal(graph(x), x.relu())
    assert not any(hasattr(nn.ModuleDict, node.name) for node in graph.graph.nodes)


class Limited(nn.Module):
    """Clamps of one whole number and one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(self.conv(x), 0, 0.25)
        return torch.clamp(x, min=-1, max=0.2) + nn.functional.hardtanh(x, -1, 0.1) + x.clamp_max(1)


def test_a_clamp_of_floats_between_a_whole_number_and_another_has_a_form_in_onnx() -> None:
    graph = trace(Limited().eval(), images(1))
    limits = [a for n in graph.graph.nodes if n.target in CLAMPS for a in [*n.args[1:], *n.kwargs.values()]]
    assert limits and all(a is None or isinstance(a, float) for a in limits)
    assert onnx.load_from_string(to_onnx(program_of(graph), {}, form="float")).graph.node
