"""What `zaq inspect` says of a model before anything is done to it."""

from conftest import zaq
from torch import nn
from torch.fx import GraphModule
from toy import unequal
from zoo import head, images, traced

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.ir.capture import trace
from zaq.report.inspect import describe_model, facts
from zaq.sources import Source

W8 = QConfig.parse("w8a8")


def source(graph: GraphModule) -> Source:
    return Source("net", graph, Card(input=(3, 16, 16)), "0" * 64, ("a note",))


def test_regions_name_who_writes_and_who_reads() -> None:
    found = facts(source(traced("residual")), W8)["equalizes"]
    assert found == [
        {"writers": ("conv2d", "conv2d_2"), "readers": ("conv2d_1", "conv2d_3"), "channels": 8},
        {"writers": ("conv2d_1",), "readers": ("conv2d_2",), "channels": 8},
        {"writers": ("conv2d_3",), "readers": ("linear",), "channels": 16},
    ]
    assert "3 regions equalize: conv2d, conv2d_2 -> conv2d_1, conv2d_3 (8); conv2d_1" in describe_model(
        source(traced("residual")), W8
    )


def test_what_will_hurt_is_said() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.GELU(), head(8)
    )
    net.append(nn.LayerNorm(5))
    told = "\n".join(facts(source(trace(net, images(1))), W8)["warnings"])
    for words in ("a note", "1 hardswish: ", "1 silu: ", "1 gelu: ", "1 layer_norm: ", "no batch norm folds"):
        assert words in told
    told = "\n".join(facts(source(traced("depthwise")), W8)["warnings"])
    assert "2 hardtanh: equalization gives every channel a clip of its own" in told and "no batch norm" not in told


def test_unequal_channels_are_found_by_layer() -> None:
    told = "\n".join(facts(source(trace(unequal(), images(1))), W8)["warnings"])
    assert "unequal channels in 1 layers (largest range over the median's: conv2d_1 " in told
    assert facts(source(traced("residual")), W8)["warnings"] == ["a note"]


def test_on_the_command_line() -> None:
    text = zaq("inspect").stdout
    assert "12 regions equalize" in text and "warning" not in text and "21 batch norms fold" in text
