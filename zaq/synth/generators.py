"""Networks that draw images from noise. What they draw stays inside what the input's normalisation allows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zaq.config.card import Card
from zaq.engine.snapshot import Remade

__all__ = ["DCGAN", "Generator", "alike"]

ALIKE = 1e-3  # a quarter of a step of 8 bits
BASE = 8  # pixels a side before the first upsampling, at most


class Generator(Remade, nn.Module):
    """Images (n, C, H, W), as a model reads them, out of what `source` hands it and labels (n,), if it has classes."""

    low: Tensor
    high: Tensor
    drawn: Tensor

    truncates: ClassVar[bool] = False  # whether it starts from normal numbers, which can be cut off
    paints: ClassVar[bool] = False  # whether it starts from images, a canvas each
    jump: ClassVar[float] = 0.0  # see `Rules.watch` (zaq/methods/zaq.py)
    truncation: float | None = None  # where those numbers end now

    def __init__(self, card: Card, classes: int | None = None) -> None:
        super().__init__()
        self.card, self.classes = card, classes
        low, high = card.bounds()
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("drawn", torch.arange(classes or 0))  # the classes that `sample` draws

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As torch's; how many classes are drawn is a part of the state."""
        self.drawn = state_dict["drawn"].clone()
        return super().load_state_dict(state_dict, *args, **options)

    def source(self, n: int) -> Tensor:
        """What n images are made from, drawn on the CPU."""
        raise NotImplementedError

    def starts(self, n: int) -> tuple[Tensor, Tensor | None]:
        """What n images are made from, and labels for them (None where the generator knows no classes)."""
        labels = self.drawn[torch.randint(len(self.drawn), (n,)).to(self.drawn.device)] if self.classes else None
        return self.source(n).to(self.low.device), labels

    def sample(self, n: int) -> tuple[Tensor, Tensor | None]:
        """n images and the labels they were drawn for."""
        start, labels = self.starts(n)
        images: Tensor = self(start, labels)
        return images, labels

    @torch.no_grad()
    def draw(self, n: int, unpainted: float = 0.0) -> Tensor:
        """n images alone, with nothing remembered for a gradient; a part of them canvas as it is, if it has one."""
        return self.sample(n)[0]

    def costs(self) -> dict[str, Tensor]:
        """What its weights cost, whatever it draws: losses by name, to be added to the others."""
        return {}

    def normal(self, n: int, size: int) -> Tensor:
        """Normal numbers (n, size); inside `truncated` those beyond the end are drawn again (Brock et al. 2019)."""
        if self.truncation is None:
            return torch.randn(n, size)
        return nn.init.trunc_normal_(torch.empty(n, size), a=-self.truncation, b=self.truncation)

    @contextmanager
    def truncated(self, end: float | None) -> Iterator[None]:
        """Inside, no number that images start from lies further from 0 than `end`: fewer kinds, each of them surer."""
        self.truncation = end
        try:
            yield
        finally:
            self.truncation = None


class DCGAN(Generator):
    """ZAQ's generator (GDFQ's too): linear, then upsample, 3x3 convolution, batch norm, leaky ReLU up to full size.

    `width` channels after the linear layer, halved at the last upsampling (paper: 128, and a quarter of it on CIFAR).
    With `classes` the latent is multiplied by an embedding of the label (GDFQ). The last batch norm has no parameters:
    it fixes contrast, and a sigmoid maps it to the range of a pixel.

    The rest is as GDFQ has it: `doublings` (2: the linear layer draws a quarter of a side, whatever the size), `eps` of
    the batch norms between convolutions, and `tanh` before the last one, whose images of mean 0 and variance 1 then are
    the normalised pixels themselves, cut where no pixel lies.
    """

    truncates: ClassVar[bool] = True

    def __init__(
        self,
        card: Card,
        latent: int,
        width: int,
        classes: int | None = None,
        doublings: int | None = None,
        eps: float = 1e-5,
        tanh: bool = False,
    ) -> None:
        super().__init__(card, classes)
        channels, height, self.image_width = card.input
        self.latent, self.height, self.tanh = latent, height, tanh
        if doublings is None:
            doublings = 0
            while max(height, self.image_width) > BASE * 2**doublings:
                doublings += 1
        self.base = (-(-height // 2**doublings), -(-self.image_width // 2**doublings), width)
        self.embed = nn.Embedding(classes, latent) if classes else None
        self.project = nn.Linear(latent, width * self.base[0] * self.base[1])

        layers: list[nn.Module] = [nn.BatchNorm2d(width)]
        for i in range(max(doublings, 1)):
            out = width if i < max(doublings, 1) - 1 else max(width // 2, 8)
            if i < doublings:
                layers.append(nn.Upsample(scale_factor=2))
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out, eps), nn.LeakyReLU(0.2)]
            width = out
        layers += [
            nn.Conv2d(width, channels, 3, padding=1),
            *([nn.Tanh()] if tanh else []),
            nn.BatchNorm2d(channels, affine=False),
        ]
        self.body = nn.Sequential(*layers)
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:  # (N, latent), (N,) -> (N, C, H, W)
        if self.embed is not None and labels is not None:
            z = z * self.embed(labels)
        height, width, channels = self.base
        x = self.project(z).view(-1, channels, height, width).contiguous(memory_format=torch.channels_last)
        x = self.body(x)[:, :, : self.height, : self.image_width]
        if self.tanh:
            return self.card.in_bounds(self.card.images(x))
        return self.low + (self.high - self.low) * torch.sigmoid(1.5 * x)

    def source(self, n: int) -> Tensor:
        return self.normal(n, self.latent)


def alike(images: Tensor, card: Card) -> bool:
    """Whether images (N, C, H, W) are all the same one: their pixels deviate by less than ALIKE of a pixel's range."""
    low, high = card.bounds(images.device)
    return len(images) > 1 and bool((images.detach().std(0, correction=0) / (high - low)).mean() < ALIKE)
