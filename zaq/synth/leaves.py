"""Images that begin as dead leaves: opaque shapes of all sizes that lie over each other.

Photographs have the statistics they have because things occlude things (Ruderman 1997; Lee, Mumford and Huang 2001),
and networks that only ever saw such drawings know photographs well (Baradad et al. 2021). They are of no class and cost
little, and no two are alike, where a generator that starts from noise soon draws the same few images of each class. The
`Painter` makes of them what the teacher's batch norms remember, and the class that is asked for.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.synth.generators import Generator

__all__ = ["Painter", "dead_leaves", "leaves"]

LEAVES = 30
SMOOTHED = 0.6  # part of the images that is blurred by a pixel
GRAY, SPREAD = 0.5, 0.25  # about what mean and deviation the pixels have, from 0 to 1
SIDE = 32  # pixels a side, at most twice that, that a painter's convolutions work at


def dead_leaves(n: int, shape: tuple[int, ...], leaves: int = LEAVES) -> Tensor:
    """n images (n, C, H, W) of mean 0 and deviation 1 or so: discs and boxes, shaded, striped and grained, small ones
    last.
    """
    channels, height, width = shape

    def some(power: float = 1.0, values: int = 1) -> Tensor:
        return torch.rand(leaves, n, values, 1) ** power

    radius = (0.9 * some(2) + 0.08) * torch.where(torch.arange(leaves) < leaves // 8, 1.2, 0.7).view(-1, 1, 1, 1)
    angle, squeezed, square = 2 * math.pi * some(), 0.2 + 0.8 * some(), some() < 0.5
    right = torch.linspace(-1, 1, width) - 2.4 * some() + 1.2  # (leaves, n, 1, W)
    down = torch.linspace(-1, 1, height)[:, None] - 2.4 * some() + 1.2  # (leaves, n, H, 1)
    cos, sin = angle.cos() / radius, angle.sin() / radius
    top = torch.zeros(n, height, width, dtype=torch.int64)  # which leaf is seen; the first covers all
    at = torch.zeros(n, height, width)  # and where on it, from -1 to 1
    for i in range(1, leaves):
        along = right[i] * cos[i] + down[i] * sin[i]
        across = (down[i] * cos[i] - right[i] * sin[i]) / squeezed[i]
        inside = torch.where(square[i], along.abs().maximum(across.abs()), along**2 + across**2) < 1
        top, at = torch.where(inside, i, top), torch.where(inside, along, at)
    colour, shade = 0.6 * some() + 0.4 * some(values=channels), 0.6 * (some() - 0.5)
    stripes, often, grain = 0.4 * some(3), (2 + 20 * some()) * radius, 0.2 * some(3)
    looks = torch.cat([colour, shade, stripes, often, grain], 2).squeeze(3).permute(1, 2, 0)  # (n, C + 4, leaves)
    seen = looks.gather(2, top.flatten(1)[:, None].expand(-1, looks.shape[1], -1)).unflatten(2, (height, width))
    colour, (shade, stripes, often, grain) = seen[:, :channels], seen[:, channels:].split(1, 1)
    at = at[:, None]
    images = colour + shade * at + stripes * torch.sin(often * at) + grain * torch.randn(n, 1, height, width)
    smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.where(torch.rand(n, 1, 1, 1) < SMOOTHED, smooth, images).clamp(0, 1)
    return ((images - GRAY) / SPREAD).contiguous(memory_format=torch.channels_last)


def leaves(n: int, card: Card) -> Tensor:
    """n images of dead leaves (n, C, H, W) as the model reads them, in the range of pixels."""
    return card.in_bounds(card.images(dead_leaves(n, card.input)))


class ConditionalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose scale and shift are learned for each class (Dumoulin et al. 2017): ten times as soon as an
    embedding that the latent is multiplied by.
    """

    SPREAD = 0.1  # of the scales and shifts at the start, so that classes differ from the first step on

    def __init__(self, features: int, classes: int, eps: float = 1e-5) -> None:
        super().__init__(features, eps, affine=False)
        self.scale, self.shift = nn.Embedding(classes, features), nn.Embedding(classes, features)
        nn.init.normal_(self.scale.weight, 1.0, self.SPREAD)
        nn.init.normal_(self.shift.weight, 0.0, self.SPREAD)

    # (N, C, H, W), (N,) -> (N, C, H, W)
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        scale, shift = (table(labels)[:, :, None, None] for table in (self.scale, self.shift))
        y: Tensor = super().forward(x) * scale + shift
        return y


class Painter(Generator):
    """Repaints dead leaves: two convolutions down, one there, one up, added to what was there before.

    Labels choose scale and shift of every batch norm. Large images are painted over at a size of 32 to 63 pixels.
    """

    paints: ClassVar[bool] = True

    def __init__(self, card: Card, width: int, classes: int | None = None) -> None:
        super().__init__(card, classes)
        channels = card.input[0]
        self.shrunk = 2 ** max(int(math.log2(min(card.input[1:]) / SIDE)), 0)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, o, stride in (
            (channels, width, 1),
            (width, 2 * width, 2),
            (2 * width, 2 * width, 1),
            (2 * width, width, 1),
        ):
            self.convs.append(nn.Conv2d(i, o, 3, stride, padding=1))
            self.norms.append(ConditionalBatchNorm2d(o, classes) if classes else nn.BatchNorm2d(o))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def source(self, n: int) -> Tensor:
        return leaves(n, self.card)

    @torch.no_grad()
    def draw(self, n: int, unpainted: float = 0.0) -> Tensor:
        """n images, of which a part (0 to 1) are the dead leaves as they are."""
        left = min(max(round(unpainted * n), 0), n)
        if left == n:
            return self.source(n).to(self.low.device)
        painted = super().draw(n - left)
        return torch.cat([painted, self.source(left).to(painted)]) if left else painted

    def forward(self, canvas: Tensor, labels: Tensor | None = None) -> Tensor:  # (n, C, H, W), (n,) -> (n, C, H, W)
        def layer(i: int, x: Tensor) -> Tensor:
            given = (labels,) if isinstance(self.norms[i], ConditionalBatchNorm2d) else ()
            return F.leaky_relu(self.norms[i](self.convs[i](x), *given), 0.2)

        canvas = self.card.standard(canvas)
        fine = layer(0, F.avg_pool2d(canvas, self.shrunk, ceil_mode=True) if self.shrunk > 1 else canvas)
        coarse = layer(2, layer(1, fine))
        paint = fine + layer(3, F.interpolate(coarse, size=fine.shape[2:]))
        if self.shrunk > 1:
            paint = F.interpolate(paint, size=canvas.shape[2:], mode="bilinear")
        images = self.card.images(canvas + self.last(paint))
        return images.maximum(self.low).minimum(self.high)
