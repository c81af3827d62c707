"""Folding keeps the function, remembers what batch norm knew, and gives a reason where it cannot."""

import pytest
import torch
from torch import nn
from zoo import ZOO, build, images, with_history

from zaq.ir.capture import trace
from zaq.ir.ops import BATCH_NORMS
from zaq.ir.taps import with_taps
from zaq.passes.fold import fold

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
