"""Blocks hold every layer once, stand end to end, and compute what the network computes."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from zoo import CARD, ZOO, conv, head, images, traced

from zaq.config.bits import QConfig
from zaq.ir.capture import trace
from zaq.ir.nodes import input_node, output_nodes
from zaq.passes.fold import fold
from zaq.quant.edges import weighted_layers
from zaq.quant.placement import place
from zaq.stages.blocks import Block, between, blocks


class Pyramid(nn.Module):
    """Three outputs, one of them from half-way, and a skip that spans two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.early = conv(3, 8), nn.Conv2d(8, 4, 1)
        self.down, self.up, self.late, self.head = conv(8, 8, stride=2), conv(8, 8), nn.Conv2d(8, 4, 1), head(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        deep = self.up(self.down(x))
        return self.early(x), self.late(deep), self.head(deep)


NETS = {**ZOO, "pyramid": Pyramid}


def folded(name: str) -> GraphModule:
    return fold(traced(name) if name in ZOO else trace(NETS[name]().eval(), images(2)))[0]


@pytest.mark.parametrize(
    ("name", "placement"), [*((n, "integer") for n in NETS), ("depthwise", "gdfq"), ("residual", "brecq")]
)
def test_end_to_end_they_are_the_network(name: str, placement: str) -> None:
    teacher = folded(name)
    _, placed = place(teacher, QConfig.parse("w4a4", placement=placement), CARD)
    found = blocks(teacher, placed.activations)
    assert [layer for b in found for layer in b.layers] == [n.name for n in weighted_layers(teacher)]
    assert found[0].entry == input_node(teacher).name and all(
        b.entry == a.exits[0] for a, b in itertools.pairwise(found)
    )
    values = {found[0].entry: images(5)}
    with torch.no_grad():
        for block in found:
            values |= dict(zip(block.exits, between(teacher, block)(values[block.entry]), strict=True))
        for node, expected in zip(output_nodes(teacher), pytree.tree_leaves(teacher(images(5))), strict=True):
            assert torch.equal(values[node.name], expected)


def test_a_students_blocks_hold_its_quantizers() -> None:
    teacher = folded("residual")
    student, placed = place(teacher, QConfig.parse("w4a4"), CARD)
    x = images(3)
    for block in blocks(teacher, placed.activations):
        part = between(student, block)
        assert {m for m in part.modules()} & set(placed.weights.values())
        (x,) = part(x)
    assert torch.equal(x, student(images(3)))


def test_a_residual_block_is_one_and_chains_are_cut() -> None:
    residual = [b.layers for b in blocks(folded("residual"), [n.name for n in folded("residual").graph.nodes])]
    assert [len(layers) for layers in residual] == [1, 2, 2]  # stem; the two of the branch; stride and head
    chain = folded("pools")
    ends = place(chain, QConfig.parse("w4a4"), CARD)[1].activations
    assert [len(b.layers) for b in blocks(chain, ends, most=1)] == [1, 1, 1, 1]
    assert [len(b.layers) for b in blocks(chain, ends, most=2)] == [2, 2]
    assert [len(b.layers) for b in blocks(chain, [], most=1)] == [4]


def test_all_that_read_a_weight_are_one_block() -> None:
    """Learned for one of them alone, it would be spoilt for the others."""
    teacher = folded("shared_weight")
    found = [b.layers for b in blocks(teacher, [n.name for n in teacher.graph.nodes], most=1)]
    assert [len(layers) for layers in found] == [1, 2, 1]


def test_between_reads_the_entry_before_its_quantizer() -> None:
    teacher = folded("residual")
    student, placed = place(teacher, QConfig.parse("w2a2"), CARD)
    block = blocks(teacher, placed.activations)[1]
    part = between(student, Block(block.entry, block.exits, block.layers))
    used = [m for m in part.modules() if m is placed.activations[block.entry]]
    assert len(used) == 1
