"""Networks that take images of any size, and some that do not."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
