"""Offsets and constants that move on: the function stays where the assumption holds."""

import torch
from torch import nn
from toy import CARD, gratings, offsets
from zoo import SHAPE, images, traced

from zaq.config.card import Card
from zaq.ir.capture import trace
from zaq.ir.nodes import bias_of, weight_of
from zaq.ir.taps import with_taps
from zaq.passes.absorb import absorb, absorb_constants
from zaq.passes.fold import fold
from zaq.quant.edges import weighted_layers
from zaq.stats.moments import moments


def pair(kernel: int, padding: int, clip: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), clip)
    net = nn.Sequential(body, nn.Conv2d(8, 4, kernel, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    norm = net[0][1]
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([6.5, 4, 3, 0, -1, 0.5, 2, 1]))
        norm.weight.fill_(0.5)
        norm.running_var.fill_(float(net[0][0](torch.randn(64, 3, 16, 16)).var()))
    return net.eval()


def test_high_offsets_move_on() -> None:
    for clip in (nn.ReLU(), nn.ReLU6()):
        graph, _ = fold(trace(pair(1, 0, clip), images(1)))
        new, moved = absorb(graph)
        assert moved == 4  # beta - 3 gamma > 0 for 6.5, which ReLU6 cuts off, 4, 3 and 2
        first = weighted_layers(new)[0]
        assert (bias_of(new, first) < bias_of(graph, weighted_layers(graph)[0]) - 0.4).sum() == 4
        x = torch.randn(32, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(new(x), graph(x), atol=2e-2, rtol=0)  # 0.1 % of the values lie below 3 gamma
        assert float(first.meta["bn"].mean.max()) <= 1.6


def test_what_data_has_seen_stays_but_for_a_thousandth() -> None:
    """Statistics from images: other images come out the same, and what is written lies lower by what moved."""
    x = gratings(64, 99)[0]
    graph, _ = fold(trace(offsets(), x))
    new, moved = absorb(graph)
    writers = [next(iter(n.users)).name for n in weighted_layers(graph)[:2]]  # the ReLUs behind the first two
    with torch.no_grad():
        expected, found = with_taps(graph, writers)(x), with_taps(new, writers)(x)
    error = (found[0][0] - expected[0][0]).pow(2).mean() / expected[0][0].var()
    assert moved == 16 and float(error) < 1e-4
    before, after = (moments(g, CARD) for g in (graph, new))
    for name, a, b in zip(writers, expected[1], found[1], strict=True):
        change = (a - b).mean((0, 2, 3)).double()
        assert (change[:8] > 1.0).all() and change[8:].abs().max() < 0.01
        torch.testing.assert_close(before[name].mean - after[name].mean, change, atol=0.02, rtol=0.01)


def test_nothing_moves_across_a_padding() -> None:
    graph, _ = fold(trace(pair(3, 1, nn.ReLU()), images(1)))
    assert absorb(graph)[1] == 0


def test_switched_off_channels_go() -> None:
    for kernel, padding, gone in ((1, 0, 3), (3, 1, 2)):  # a constant above zero cannot move across a padding
        model = pair(kernel, padding, nn.ReLU())
        with torch.no_grad():
            model[0][0].weight[[3, 4, 0]] = 1e-12  # type: ignore[index]
            model[0][1].running_mean.zero_()  # type: ignore[union-attr,operator]
            model[1].weight[:, [3, 4, 0]] *= 100  # type: ignore[operator]
        graph, _ = fold(trace(model, images(1)))
        new, number = absorb_constants(graph)
        assert number == gone
        with torch.no_grad():
            torch.testing.assert_close(new(images(8)), graph(images(8)), atol=1e-4, rtol=1e-4)
        off = [3, 4, 0] if gone == 3 else [3, 4]
        first = weighted_layers(new)[0]
        written = with_taps(new, [next(iter(first.users)).name])(images(8))[1][0]
        assert (written[:, off] == 0).all() and (written.amax((0, 2, 3)) == 0).sum() == gone
        known = moments(new, Card(input=SHAPE))[next(iter(first.users)).name]
        assert max(float(end[off].abs().max()) for end in (*known.reach(6.0), known.mean, known.variance)) < 1e-9
        second = weight_of(new, weighted_layers(new)[1])
        assert (second[:, [3, 4]] == 0).all() and bool((second[:, 0] == 0).all()) == (gone == 3)


def test_a_channel_that_cannot_be_zero_stays() -> None:
    model = pair(1, 0, nn.Hardtanh(0.5, 6.0))
    with torch.no_grad():
        model[0][0].weight[[3, 4, 0]] = 0  # type: ignore[index]
    graph, _ = fold(trace(model, images(1)))
    assert absorb_constants(graph)[1] == 0


def test_graphs_of_every_kind_pass() -> None:
    for name in ("residual", "concat", "squeeze_excite", "signed", "shared_weight"):
        graph, _ = fold(traced(name))
        new, _ = absorb_constants(graph)
        with torch.no_grad():
            torch.testing.assert_close(new(images(4)), graph(images(4)))
        absorb(graph)
