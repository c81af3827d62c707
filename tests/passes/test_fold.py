"""Folding keeps the function, remembers what batch norm knew, and gives a reason where it cannot."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, build, images, with_history

from zaq.ir.capture import trace
from zaq.ir.ops import BATCH_NORMS
from zaq.ir.taps import with_taps
from zaq.passes.fold import fold

aten = torch.ops.aten
LEFT = {
    "shared_weight": "shared.weight is shared by 2 layers",
    "signed": "no convolution or linear layer stands before it",
}


@pytest.mark.parametrize("name", ZOO)
def test_folding_keeps_the_function(name: str) -> None:
    model, x = build(name), images(8)
    graph = trace(model, x)
    folded, skipped = fold(graph)
    torch.testing.assert_close(folded(x), model(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(graph(x), model(x))  # the argument is left alone
    left = [n for n in folded.graph.nodes if n.target in BATCH_NORMS]
    assert len(left) == len(skipped) == (name in LEFT)
    assert all(LEFT[name] in s and "zoo.py:" in s for s in skipped)


@pytest.mark.parametrize("name", ["residual", "transposed", "grouped", "functional_batch_norm"])
def test_folded_layers_know_their_statistics(name: str) -> None:
    """A batch whose statistics are batch norm's own comes out with mean beta and deviation |gamma|."""
    graph = trace(build(name), images(1))
    original = next(n for n in graph.graph.nodes if n.target in BATCH_NORMS)
    folded, _ = fold(graph)
    layer = next(n for n in folded.graph.nodes if "bn" in n.meta)
    stats = layer.meta["bn"]
    x = images(64)
    raw = with_taps(graph, [original.args[0].name])(x)[1][0]
    out = with_taps(folded, [layer.name])(x)[1][0]
    unit = [1, -1, 1, 1]
    expected = (raw - stats.running_mean.view(unit)) / stats.running_std.view(unit) * stats.std.view(
        unit
    ) + stats.mean.view(unit)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)  # gamma is positive in the zoo


def test_linear_and_batch_norm_without_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU()).eval()
    folded, skipped = fold(trace(model, images(2)))
    assert not skipped
    torch.testing.assert_close(folded(images(4)), model(images(4)), atol=1e-6, rtol=1e-5)


class Scales(nn.Module):
    """ConvNeXt's scale behind a permutation, one behind a batch norm, one of rows, and one that several read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.mix, self.rows, self.last = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.a, self.b = nn.Parameter(torch.randn(6, 1, 1)), nn.Parameter(torch.randn(1, 6, 1, 1))
        self.c, self.d = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)) * self.b
        x = self.a * self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + x
        x = self.rows(x.flatten(2).transpose(1, 2)) * self.c
        y = self.last(x)
        return y + y * self.d


def test_layer_scales_fold_where_nothing_else_reads_the_layer() -> None:
    torch.manual_seed(0)
    model, x = with_history(Scales()).eval(), images(4)
    folded, skipped = fold(trace(model, x))
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)
    left = [n for n in folded.graph.nodes if n.target is torch.ops.aten.mul.Tensor]
    assert len(left) == 1 and left[0].args[1].target == "d" and not skipped
    (conv,) = [n for n in folded.graph.nodes if "bn" in n.meta]
    torch.testing.assert_close(conv.meta["bn"].std, (model.norm.weight * model.b.flatten()).detach().abs())


class Affine(nn.Module):
    """A layer, and constants behind it."""

    def __init__(self, layer: nn.Module, function: Callable[[Tensor, Tensor], Tensor], constant: Tensor) -> None:
        super().__init__()
        self.layer, self.function = layer, function
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x), self.constant)


CHANNELS = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(4, 1, 1)
CONSTANTS: dict[str, tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "scalars": (nn.Conv2d(3, 4, 3, bias=False), lambda x, c: x * c + 0.5, torch.tensor([0.7])),
    "channels": (nn.Conv2d(3, 4, 3), lambda x, c: (x - c) / c, CHANNELS),
    "a difference": (nn.Conv2d(3, 4, 3, groups=1), lambda x, c: c - x, CHANNELS),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), lambda x, c: c * x + c, CHANNELS),
    "rows": (nn.Linear(8, 5, bias=False), lambda x, c: x + c, torch.arange(5.0)),
    "norms": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), lambda x, c: x * 2 + c, CHANNELS),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_behind_a_layer_are_its_weight_and_bias(name: str) -> None:
    layer, function, constant = CONSTANTS[name]
    torch.manual_seed(0)
    model = Affine(layer, function, constant).eval()
    graph = trace(model, torch.zeros(2, 3, 8, 8))
    folded, _ = fold(graph)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert not {aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor}.intersection(
        n.target for n in folded.graph.nodes
    )
    for node in folded.graph.nodes:
        if "bn" in node.meta:
            torch.testing.assert_close(node.meta["bn"].mean, 2 * layer[1].bias + constant.flatten())  # type: ignore[index]


KEPT: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "places": (lambda x, c: x + c, torch.randn(6, 6)),
    "a column": (lambda x, c: x * c, torch.randn(6)),
    "a reciprocal": (lambda x, c: c / x, CHANNELS),
    "read twice": (lambda x, c: x * c + x, CHANNELS),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_constants_stay(name: str) -> None:
    function, constant = KEPT[name]
    model = Affine(nn.Conv2d(3, 4, 3), function, constant).eval()
    folded, _ = fold(trace(model, torch.zeros(2, 3, 8, 8)))
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert sum(n.op == "call_function" for n in folded.graph.nodes) > 1
