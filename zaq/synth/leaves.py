"""Images that begin as dead leaves: opaque shapes of all sizes that lie over each other.

Photographs have the statistics they have because things occlude things (Ruderman 1997; Lee, Mumford and Huang 2001), and
networks that only ever saw such drawings know photographs well (Baradad et al. 2021). They are of no class and cost
nothing, and no two are alike, where a generator that starts from noise soon draws the same few images of each class. The
`Painter` makes of them what the teacher's batch norms remember, and the class that is asked for.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.config import Card
from zaq.synth.generators import ConditionalBatchNorm2d, Generator, natural

__all__ = ["Painter", "dead_leaves"]

LEAVES = 30
SMOOTHED = 0.6  # part of the images that is blurred by a pixel
GRAY, SPREAD = 0.5, 0.25  # about what mean and deviation the pixels have, from 0 to 1
SIDE = 32  # pixels a side, at most twice that, that a painter's convolutions work at


def dead_leaves(n: int, shape: tuple[int, ...], leaves: int = LEAVES) -> Tensor:
    """n images (n, C, H, W) of mean 0 and deviation 1 or so: discs and boxes, shaded, striped and grained, small ones last."""
    channels, height, width = shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    images = torch.rand(n, channels, 1, 1).expand(n, channels, height, width)

    def some(power: float = 1.0, channels: int = 1) -> Tensor:
        return torch.rand(n, channels, 1, 1) ** power

    for i in range(leaves):
        radius = (0.9 * some(2) + 0.08) * (1.2 if i < leaves // 8 else 0.7)
        angle, squeezed = 2 * math.pi * some(), 0.2 + 0.8 * some()
        right, down = x - (2.4 * some() - 1.2), y - (2.4 * some() - 1.2)
        along = (right * angle.cos() + down * angle.sin()) / radius  # (n, 1, H, W), from -1 to 1 across a leaf
        across = (down * angle.cos() - right * angle.sin()) / (radius * squeezed)
        disc, box = along**2 + across**2 < 1, torch.maximum(along.abs(), across.abs()) < 1
        colour = 0.6 * some() + 0.4 * some(channels=channels)
        shade = 0.6 * (some() - 0.5) * along
        stripes = 0.4 * some(3) * torch.sin((2 + 20 * some()) * radius * along)
        grain = 0.2 * some(3) * torch.randn(n, 1, height, width)
        images = torch.where(torch.where(some() < 0.5, disc, box), colour + shade + stripes + grain, images)
    smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.where(some() < SMOOTHED, smooth, images).clamp(0, 1)
    return ((images - GRAY) / SPREAD).contiguous(memory_format=torch.channels_last)


class Painter(Generator):
    """Repaints dead leaves: two convolutions down, one there, one up, added to what was there before.

    Labels choose scale and shift of every batch norm. Large images are painted over at a size of 32 to 63 pixels.
    """

    def __init__(self, card: Card, width: int, classes: int | None = None) -> None:
        super().__init__(card, classes)
        self.shape = card.input
        channels = card.input[0]
        self.shrunk = 2 ** max(int(math.log2(min(card.input[1:]) / SIDE)), 0)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, o, stride in ((channels, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, width, 1)):
            self.convs.append(nn.Conv2d(i, o, 3, stride, padding=1))
            self.norms.append(ConditionalBatchNorm2d(o, classes) if classes else nn.BatchNorm2d(o))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def source(self, n: int) -> Tensor:
        return natural(dead_leaves(n, self.shape), self.low, self.high)

    def forward(self, canvas: Tensor, labels: Tensor | None = None) -> Tensor:  # (n, C, H, W), (n,) -> (n, C, H, W)
        def layer(i: int, x: Tensor) -> Tensor:
            given = (labels,) if isinstance(self.norms[i], ConditionalBatchNorm2d) else ()
            return F.leaky_relu(self.norms[i](self.convs[i](x), *given), 0.2)

        fine = layer(0, F.avg_pool2d(canvas, self.shrunk, ceil_mode=True) if self.shrunk > 1 else canvas)
        coarse = layer(2, layer(1, fine))
        paint = fine + layer(3, F.interpolate(coarse, size=fine.shape[2:]))
        if self.shrunk > 1:
            paint = F.interpolate(paint, size=canvas.shape[2:], mode="bilinear")
        images: Tensor = canvas + self.last(paint)
        return images.maximum(self.low).minimum(self.high)
