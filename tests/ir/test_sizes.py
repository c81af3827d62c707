"""Heights and widths stay open where nothing depends on them; else what does is named."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.ir.capture import trace
from zaq.ir.nodes import input_node, open_sizes
from zaq.ir.sizes import WORDS, open_up, other_sizes

SHAPE = (3, 16, 16)


class Net(nn.Module):
    """A convolution of stride 4 to 8 channels, layers to be used, and what the subclass does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 3, 2, 1)
        self.down, self.mix, self.up = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 5, 1), nn.Linear(8, 16)
        self.norm, self.back, self.head = nn.LayerNorm(8), nn.Linear(16, 8), nn.Linear(8, 5)
        self.rows, self.flat, self.shuffle = nn.Conv2d(8, 8, (4, 3), 1, (0, 1)), nn.Linear(128, 5), nn.Conv2d(3, 12, 1)
        self.table = nn.Parameter(torch.randn(1, 8, 4, 4))


class Pyramid(Net):
    def forward(self, x: Tensor) -> Tensor:
        large = self.first(x).relu()
        small = F.interpolate(self.down(large), size=large.shape[-2:], mode="bilinear")
        return F.interpolate(self.mix(torch.cat([large, small], 1)), size=x.shape[2:])


class Tokens(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        n, c, h, w = y.shape
        tokens = y.flatten(2).transpose(1, 2)
        tokens = tokens + self.back(F.gelu(self.up(self.norm(tokens))))
        return tokens.transpose(1, 2).reshape(n, c, h, w)


class Attention(Net):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        n, length, c = tokens.shape
        heads = tokens.reshape(n, length, 2, 4).permute(0, 2, 1, 3)
        y = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(n, length, c)
        return self.head(y).mean(1)


class Classifier(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.stem(x), 1).view(x.size(0), -1))


class Super(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.shuffle(x), 2) + F.interpolate(x, scale_factor=2, mode="bilinear")


class Halves(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(x).chunk(2, 3)[0]


class Reader(Net):
    """As OCR readers do: one row of features, a class for each column."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(self.stem(x)).squeeze(2).permute(0, 2, 1)).softmax(2)


class Table(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x) + self.table


class Flat(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.flat(self.stem(x).flatten(1))


class ToGrid(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.stem(x), 2).mean((2, 3)))


class Branch(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head((y * 2 if x.shape[3] > 16 else y).mean((2, 3)))


class Coordinates(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head((y * torch.linspace(0, 1, y.shape[3])).mean((2, 3)))


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
        (Table, (), r"test_sizes\.py:\d+: return self\.stem\(x\) \+ self\.table"),
        (Flat, (), r"return self\.flat\(self\.stem\(x\)\.flatten\(1\)\)"),
        (ToGrid, (), r"'adaptive_avg_pool2d' .*is given \[2, 2\], and"),
        (Branch, (2,), "computed in another way"),
        (Coordinates, (2,), r"'linspace_constant' is made for the size; 'mul' \(.*test_sizes\.py"),
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
