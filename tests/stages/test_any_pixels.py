"""A network is quantized alike whatever pixels it reads: 0 to 255, less means, or normalised within."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq.api import quantize_graph
from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.config.normalizations import NORMALIZATIONS
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.ir.capture import trace
from zaq.methods.rtn import RTN
from zaq.passes.fold import fold
from zaq.sources import load
from zaq.stages.synthesis import Draw, Refine, Synthesize

SHAPE = (3, 32, 32)
CARDS = {name: Card(input=SHAPE, mean=mean, std=std) for name, (mean, std) in NORMALIZATIONS.items()}


class Normalises(nn.Module):
    """A network of normalised pixels behind what makes them, from pixels that a card says."""

    def __init__(self, net: nn.Module, inner: Card, outer: Card) -> None:
        super().__init__()
        self.net = net
        (a, b), (c, d) = inner.bounds(), outer.bounds()
        self.register_buffer("scale", (d - c) / (b - a))
        self.register_buffer("offset", c - a * (d - c) / (b - a))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net((x - self.offset) / self.scale)
        return y


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load("zoo:resnet20_cifar10")


@pytest.fixture(scope="module")
def wrapped(shipped: Any) -> dict[str, GraphModule]:
    """The shipped network with its normalisation inside, behind the pixels of some cards."""
    found = {"0-255": shipped.graph, "caffe": shipped.graph}
    return {k: trace(Normalises(g, shipped.card, CARDS[k]), torch.zeros(2, *SHAPE)) for k, g in found.items()}


def pixels(images: Tensor, card: Card) -> Tensor:
    low, high = card.bounds()
    return (images - low) / (high - low)


def task_of(graph: GraphModule, card: Card) -> Task:
    return Task(fold(graph)[0], QConfig.parse("w8a8"), card)


@pytest.mark.parametrize("name", CARDS)
def test_noise_has_the_pixels_of_photographs(name: str, shipped: Any) -> None:
    torch.manual_seed(0)
    card = CARDS[name]
    noise = pixels(task_of(shipped.graph, card).noise(), card)
    assert 0.4 < noise.mean() < 0.55 and 0.18 < noise.std() < 0.28


def test_noise_of_usual_cards_is_what_it_was(shipped: Any) -> None:
    for name in ("imagenet", "cifar10", "cifar100"):
        low, high = CARDS[name].bounds()
        torch.manual_seed(0)
        found = task_of(shipped.graph, CARDS[name]).noise(4)
        torch.manual_seed(0)
        assert torch.equal(found, torch.randn(4, *SHAPE).maximum(low).minimum(high))


@pytest.mark.parametrize("name", ["0-255", "caffe"])
def test_painted_and_refined_images_are_the_same_pixels(
    name: str, shipped: Any, wrapped: dict[str, GraphModule]
) -> None:
    """Trained as a generator, drawn, and moved: as far as for the network that reads normalised pixels."""
    drawn, moved = {}, {}
    for graph, card in ((shipped.graph, shipped.card), (wrapped[name], CARDS[name])):
        state = State(task_of(graph, card))
        with drawing(0):
            run_stages([Synthesize(steps=2), Draw(count=16)], state, Journal())
            assert state.images is not None
            before = pixels(state.images, card)
            run_stages([Refine(steps=2)], state, Journal())
            drawn[card], moved[card] = before, (pixels(state.images, card) - before).abs().mean()
    (a, b), (near, far) = drawn.values(), moved.values()
    assert abs(float(a.mean() - b.mean())) < 0.06 and abs(float(a.std() - b.std())) < 0.06
    assert 0.15 < b.std() < 0.35 and 0.7 < far / near < 1.4


def test_as_good_behind_pixels_to_255(shipped: Any, wrapped: dict[str, GraphModule]) -> None:
    """Of the outputs on the same photographs' pixels, 1 dB at most is lost."""
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    x = nn.functional.interpolate(x, scale_factor=4, mode="bilinear").sub(0.5).mul(1.4).add(0.45).clamp(0, 1)
    found = []
    for graph, card in ((shipped.graph, shipped.card), (wrapped["0-255"], CARDS["0-255"])):
        quantized = quantize_graph(graph, QConfig.parse("w8a8"), RTN(), card=card, effort="fast")
        low, high = card.bounds()
        images = low + (high - low) * x
        with torch.no_grad():
            p, q = quantized.teacher(images), quantized.module(images)
        found.append(float(10 * (p.square().sum() / (p - q).square().sum()).log10()))
    assert found[1] > found[0] - 1 and found[0] > 15, found
