"""Heights and widths stay open where nothing depends on them; else what does is named."""

import re

import pytest
import torch
from sized import (
    Attention,
    Branch,
    Classifier,
    Coordinates,
    Flat,
    Halves,
    Net,
    Pyramid,
    Reader,
    Super,
    Table,
    ToGrid,
    Tokens,
)

from zaq.ir.capture import trace
from zaq.ir.nodes import input_node, open_sizes
from zaq.ir.sizes import WORDS, open_up, other_sizes

SHAPE = (3, 16, 16)


def opened(kind: type[Net]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    torch.manual_seed(0)
    net = kind().eval()
    graph, notes = open_up(lambda image: trace(net, torch.zeros(2, *image)), SHAPE, (2, 3))
    assert tuple(input_node(graph).meta["val"].shape[1:]) == SHAPE
    free = open_sizes(graph)
    for size in (SHAPE, *(s for s in [(3, 44, 72)] if free)):
        x = torch.randn(3, *[s if d in free else n for d, (s, n) in enumerate(zip(size, SHAPE, strict=True), 1)])
        with torch.no_grad():
            torch.testing.assert_close(graph(x), net(x), atol=1e-4, rtol=1e-4)
    return free, notes


@pytest.mark.parametrize("kind", [Pyramid, Tokens, Attention, Classifier, Super, Halves])
def test_sizes_that_nothing_depends_on_stay_open(kind: type[Net]) -> None:
    assert opened(kind) == ((2, 3), ())


@pytest.mark.parametrize(
    ("kind", "free", "named"),
    [
        (Reader, (3,), "squeeze"),
        (Table, (), r"sized\.py:\d+: return self\.stem\(x\) \+ self\.table"),
        (Flat, (), r"return self\.flat\(self\.stem\(x\)\.flatten\(1\)\)"),
        (ToGrid, (), r"'adaptive_avg_pool2d' .*is given \[2, 2\], and"),
        (Branch, (2,), "computed in another way"),
        (Coordinates, (2,), r"'linspace_constant' is made for the size; 'mul' \(.*sized\.py"),
    ],
)
def test_what_depends_on_a_size_is_named(kind: type[Net], free: tuple[int, ...], named: str) -> None:
    found, notes = opened(kind)
    assert found == free and len(notes) == 2 - len(free)
    for note, dim in zip(notes, [d for d in (2, 3) if d not in free], strict=True):
        assert note.startswith(f"the {WORDS[dim]} is fixed at 16, though") and re.search(named, note), note


def test_sizes_to_try_differ_where_they_may() -> None:
    for size in other_sizes((3, 48, 320), (3,)):
        assert size[:2] == (3, 48) and size[2] > 320
    odd = next(other_sizes((3, 224, 224), (2, 3)))
    assert odd[1] % 2 == odd[2] % 2 == 1 and odd[1] != odd[2]


def test_whatever_fails_at_another_size_is_no_traceback() -> None:
    net = Classifier().eval()

    def read(image: tuple[int, ...]) -> torch.fx.GraphModule:
        if image != SHAPE:
            raise ValueError("of somebody's own")
        return trace(net, torch.zeros(2, *image))

    graph, notes = open_up(read, SHAPE, (3,))
    assert open_sizes(graph) == () and notes[0].endswith("at 16x33 of somebody's own")
