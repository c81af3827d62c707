"""The normalisation a network begins with: found in every spelling, combined with the card, and said."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.config.normalizations import NORMALIZATIONS
from zaq.ir.capture import trace
from zaq.ir.nodes import input_node
from zaq.ir.opening import image_node, opening, read_opening
from zaq.passes.fold import fold
from zaq.quant.placement import place
from zaq.quant.ranges import bounds

SHAPE = (3, 16, 16)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Begins(nn.Module):
    """A convolution behind a normalisation."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("mean", MEAN.clone())
        self.register_buffer("std", STD.clone())
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean = 255 * MEAN.flatten()
        self.norm.running_var = (255 * STD.flatten()) ** 2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.how(self, x))
        return y


HOWS: dict[str, Callable[..., Tensor]] = {
    "divided twice": lambda net, x: (x / 255 - net.mean) / net.std,
    "scaled": lambda net, x: (x - 255 * 0.45) * (1 / 58.0),
    "inception": lambda net, x: x / 127.5 - 1,
    "with a batch": lambda net, x: (x - 255 * net.mean[None]) / (255 * net.std[None]),
    "turned round": lambda net, x: 1 - x / 255,
    "batch norm": lambda net, x: net.norm(x),
    "rescaled, batch norm": lambda net, x: net.norm(x / 1.0),
}


@pytest.mark.parametrize("how", HOWS)
def test_it_is_found_and_pixels_to_255_are_guessed(how: str) -> None:
    net = Begins(HOWS[how]).eval()
    graph = trace(net, torch.zeros(1, *SHAPE))
    scale, shift = list(opening(graph).values())[-1]
    x = 255 * torch.rand(2, *SHAPE)
    assert torch.allclose(x * scale + shift, HOWS[how](net, x), atol=1e-4)
    card, said = read_opening(graph, Card(input=SHAPE))
    assert card.std == (1 / 255,) * 3 and card.mean == (0.0,) * 3 and "a guess" in said[0]
    wanted = HOWS[how](net, torch.stack([torch.zeros(SHAPE), torch.full(SHAPE, 255.0)])).detach()
    known = bounds(fold(graph)[0], card)[image_node(graph).name]
    assert known.tight and abs(known.low - float(wanted.min())) < 1e-3 > abs(known.high - float(wanted.max()))


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_image_keeps_its_8_bits_behind_it(bits: str) -> None:
    graph = fold(trace(Begins(HOWS["divided twice"]).eval(), torch.zeros(1, *SHAPE)))[0]
    placed = place(graph, QConfig.parse(bits), Card(input=SHAPE, mean=(0.0,), std=(1 / 255,)))[1]
    quantizer = placed.activations[image_node(graph).name]
    assert quantizer.bits == 8 and quantizer.guaranteed and input_node(graph).name not in placed.activations
    assert quantizer.limits()[1] == pytest.approx(float(((1 - MEAN) / STD).max()), rel=0.02)
    assert next(source for source, _ in placed.layers.values()) == image_node(graph).name


def test_pixels_to_1_are_said_and_not_assumed() -> None:
    """A network that is given standard normal numbers may begin so, too (`buffer_called_mean` of the reports)."""
    graph = trace(Begins(lambda net, x: (x - net.mean) / net.std).eval(), torch.zeros(1, *SHAPE))
    card, said = read_opening(graph, Card(input=SHAPE))
    assert card == Card(input=SHAPE) and "pixels from 0 to 1; if it reads such, say --normalize 0-1" in said[0]


def test_a_card_is_believed_and_a_second_normalisation_doubted() -> None:
    graph = trace(Begins(HOWS["divided twice"]).eval(), torch.zeros(1, *SHAPE))
    for name, doubted in (("0-255", False), ("imagenet", True)):
        mean, std = NORMALIZATIONS[name]
        given = Card(input=SHAPE, mean=mean, std=std)
        card, said = read_opening(graph, given)
        assert card == given and ("once more" in said[0]) == doubted and "its first layer reads" in said[0]


@pytest.mark.parametrize("how", [lambda net, x: x, lambda net, x: x * x.mean(), lambda net, x: x.clamp(0, 1) / 2])
def test_what_is_none(how: Callable[..., Tensor]) -> None:
    graph = trace(Begins(how).eval(), torch.zeros(1, *SHAPE))
    assert not opening(graph) and image_node(graph) is input_node(graph)
    assert read_opening(graph, Card(input=SHAPE)) == (Card(input=SHAPE), [])


def test_what_does_not_follow_is_asked_for() -> None:
    graph = trace(Begins(lambda net, x: (x + 3000) * 0.02).eval(), torch.zeros(1, *SHAPE))
    card, said = read_opening(graph, Card(input=SHAPE))
    assert not card.knows_pixels and "say --normalize" in said[0]
