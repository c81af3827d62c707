"""Equalization keeps the function on every structure, and levels what it was made to level."""

import pytest
import torch
from torch import nn
from zoo import ZOO, build, images

from zaq.ir.capture import trace
from zaq.ir.nodes import activations, weight_of
from zaq.passes.equalize import equalize, relax_relu6
from zaq.passes.fold import fold
from zaq.quant.edges import weighted_layers


def folded(model: nn.Module) -> torch.fx.GraphModule:
    return fold(trace(model, images(1)))[0]


@pytest.mark.parametrize("name", ZOO)
def test_the_function_stays(name: str) -> None:
    graph, x = folded(build(name)), images(8)
    equal, _ = equalize(graph)
    with torch.no_grad():
        expected = graph(x)
        torch.testing.assert_close(equal(x), expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["residual", "concat", "depthwise", "grouped", "squeeze_excite", "pools"])
def test_it_reaches_every_layer_of(name: str) -> None:
    graph = folded(build(name))
    equal, _ = equalize(graph)
    mine = {n.name: n for n in equal.graph.nodes}
    changed = [not torch.allclose(weight_of(graph, n), weight_of(equal, mine[n.name])) for n in weighted_layers(graph)]
    assert sum(changed) >= len(changed) - (1 if name == "squeeze_excite" else 0)  # what a sigmoid reads stays


def spoiled(name: str) -> nn.Module:
    """A net whose channels have ranges from 1/100 to 100, as training leaves them in a depthwise network."""
    model = build(name)
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.mul_(10 ** torch.empty_like(module.weight).uniform_(-2, 1))
    return model


@pytest.mark.parametrize(
    ("name", "to"), [("depthwise", 0.5), ("grouped", 0.8), ("residual", 0.8)]
)  # of several writers, the mean counts
def test_ranges_come_closer(name: str, to: float) -> None:
    graph = folded(spoiled(name))
    equal, _ = equalize(graph, 100)

    def spread(gm: torch.fx.GraphModule) -> float:
        ranges = [weight_of(gm, n).detach().flatten(1).abs().amax(1) for n in weighted_layers(gm)]
        return float(sum((r / r.max()).log().abs().mean() for r in ranges))

    assert spread(equal) < to * spread(graph)


def test_a_pair_is_the_papers_formula() -> None:
    """s_i = sqrt(r1_i r2_i) / r2_i, after which both ranges are sqrt(r1_i r2_i)   (DFQ, eq. 11)"""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Flatten())
    graph = folded(net.eval())
    first, second = (weight_of(graph, n).detach() for n in weighted_layers(graph))
    expected = (first.flatten(1).abs().amax(1) * second.abs().amax((0, 2, 3))).sqrt()
    equal, _ = equalize(graph)
    first, second = (weight_of(equal, n).detach() for n in weighted_layers(equal))
    torch.testing.assert_close(first.flatten(1).abs().amax(1), expected)
    torch.testing.assert_close(second.abs().amax((0, 2, 3)), expected)


def test_a_clip_moves_with_its_channel() -> None:
    equal, _ = equalize(folded(build("depthwise")))
    clips = [n for n in activations(equal) if n.target is torch.ops.aten.clamp.Tensor]
    assert clips and all(len(n.meta["limits"][1]) > 1 and float(n.meta["limits"][1].std()) > 0 for n in clips)


def test_statistics_move_with_their_channel() -> None:
    graph = folded(build("residual"))
    equal, _ = equalize(graph)
    for a, b in zip(weighted_layers(graph), weighted_layers(equal), strict=True):
        if "bn" in a.meta:
            ratio = weight_of(graph, a).flatten(1).norm(dim=1) / weight_of(equal, b).flatten(1).norm(dim=1)
            written = a.meta["bn"].std / b.meta["bn"].std
            reads = weight_of(graph, a).shape[1] == 3  # the first layer: nothing it reads was scaled
            if reads:
                torch.testing.assert_close(written, ratio.detach())


def test_what_carries_no_scale_is_named() -> None:
    assert any("shared" in r for r in equalize(folded(build("shared_weight")))[1])
    assert any("sigmoid" in r for r in equalize(folded(build("squeeze_excite")))[1])


def test_relu6_becomes_relu_on_demand_only() -> None:
    graph = folded(build("depthwise"))
    targets = {n.target for n in relax_relu6(graph).graph.nodes}
    assert torch.ops.aten.hardtanh.default not in targets and torch.ops.aten.hardtanh.default in {
        n.target for n in graph.graph.nodes
    }
