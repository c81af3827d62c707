"""Alike channels in front of depthwise convolutions: the function stays, ranges meet, nothing else is touched."""

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, build, images

from zaq.ir.capture import trace
from zaq.ir.taps import with_taps
from zaq.passes.even import LEAST, even, free_to_scale
from zaq.passes.fold import fold


def folded(model: nn.Module) -> torch.fx.GraphModule:
    return fold(trace(model, images(1)))[0]


class Net(nn.Module):
    """Channels that reach from 1 to 20, behind a convolution or behind a hard swish and a constant; the constants are
    as PP-LCNet writes them."""

    def __init__(self, behind: str, reader: nn.Module) -> None:
        super().__init__()
        self.behind, self.first, self.reader = behind, nn.Conv2d(3, 8, 3, padding=1), reader
        self.gain, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-0.1))
        with torch.no_grad():
            self.first.weight.mul_(torch.linspace(1, 20, 8).view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        if self.behind == "relu":
            y = y.relu()
        elif self.behind == "relu6":
            y = nn.functional.relu6(y)
        elif self.behind == "constants":
            y = nn.functional.hardswish(y) * self.gain + self.shift
        elif self.behind == "hardswish":
            y = nn.functional.hardswish(y)
        read: Tensor = self.reader(y)
        return read.mean((2, 3))


@torch.no_grad()
def reach(graph: torch.fx.GraphModule, name: str, x: Tensor) -> Tensor:
    values: Tensor = with_taps(graph, [name])(x)[1][0]
    return values.abs().amax((0, 2, 3))


def depthwise() -> nn.Module:
    return nn.Conv2d(8, 16, 3, padding=1, groups=8)


@pytest.mark.parametrize("name", ZOO)
def test_the_function_stays(name: str) -> None:
    graph, x = folded(build(name)), images(8)
    other, _ = even(graph, x)
    with torch.no_grad():
        expected = graph(x)
        torch.testing.assert_close(other(x), expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("behind", "reader"),
    [
        ("nothing", depthwise()), ("relu", depthwise()), ("constants", depthwise()), ("nothing", nn.InstanceNorm2d(8)),
        ("relu", nn.Sequential(nn.ReflectionPad2d(1), depthwise())),
    ],
)  # fmt: skip
def test_channels_reach_as_far_as_each_other(behind: str, reader: nn.Module) -> None:
    torch.manual_seed(0)
    graph, x = folded(Net(behind, reader).eval()), images(8)
    other, count = even(graph, x)
    assert count == 1
    with torch.no_grad():
        torch.testing.assert_close(other(x), graph(x), atol=1e-5, rtol=1e-5)
    read = next(n for n in other.graph.nodes if free_to_scale(n)).all_input_nodes[0].name
    before, after = reach(graph, read, x), reach(other, read, x)
    assert float(before.max() / before.min()) > 4
    torch.testing.assert_close(after / after.max(), (after / after.max()).clamp(min=0.99), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("behind", "reader"),
    [
        ("relu6", depthwise()),  # would need a limit for each channel
        ("hardswish", depthwise()),  # lets no scale through, and nothing behind it takes one
        ("relu", nn.Conv2d(8, 16, 3, padding=1)),  # its weights have one scale for all they read
        ("relu", nn.Conv2d(8, 16, 3, padding=1, groups=4)),
    ],
)
def test_what_is_not_free_stays(behind: str, reader: nn.Module) -> None:
    graph = folded(Net(behind, reader).eval())
    other, count = even(graph, images(4))
    assert count == 0
    for name, value in graph.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_a_channel_that_is_still_keeps_room() -> None:
    """On other images it may not be."""
    net = Net("nothing", depthwise()).eval()
    with torch.no_grad():
        net.first.weight[0], net.first.bias[0] = 0, 1e-6  # type: ignore[index]
    graph, x = folded(net), images(8)
    other, _ = even(graph, x)
    before, after = reach(graph, "conv2d", x), reach(other, "conv2d", x)
    assert float(after[0] / before[0]) == pytest.approx(1 / LEAST, rel=1e-3)
