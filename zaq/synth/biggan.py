"""BigGAN's generator (Brock, Donahue, Simonyan; ICLR 2019), for images of any size.

    block: h = conv(up(relu(norm(x)))), conv(relu(norm(h))) + conv1x1(up(x))
    norm:  (1 + W_g y) BN(x) + W_b y,   y = [shared(class), this block's chunk of z]

z is cut into a chunk for the linear layer and one for each block (skip-z). All weights but the shared embedding are
divided by their largest singular value (Miyato et al. 2018) and begin orthogonal; what their rows have in common costs
(`losses.orthogonal_loss`). Images that are drawn to be learned from come from an average of the weights over steps.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from zaq.config.card import Card
from zaq.errors import BitsError
from zaq.synth.generators import Generator
from zaq.synth.losses import orthogonal_loss

__all__ = ["BigGAN"]

BASE = 4  # pixels a side behind the linear layer, at most
FULL = 3  # blocks of all channels; each one behind them has half as many, as those for large images
THIN = 8  # channels, at least
SHARED = 128  # numbers of a class
ORTHOGONAL = 1e-4  # beta of the regularisation
MEMORY = 0.9999  # of the average, once it has seen enough; until then (1 + steps) / (10 + steps)


class Norm(nn.BatchNorm2d):
    """Batch norm whose gains and biases are linear in y; always by what the batch itself has."""

    def __init__(self, features: int, condition: int) -> None:
        super().__init__(features, eps=1e-5, affine=False, track_running_stats=False)
        self.gains, self.biases = (_normed(nn.Linear(condition, features, bias=False)) for _ in range(2))

    # (N, C, H, W), (N, condition) -> (N, C, H, W)
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        gains, biases = (of(y)[:, :, None, None] for of in (self.gains, self.biases))
        y = super().forward(x) * (1 + gains) + biases
        return y


class Block(nn.Module):
    """Twice the size, with a way past."""

    def __init__(self, i: int, o: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([Norm(i, condition), Norm(o, condition)])
        self.convs = nn.ModuleList([_normed(nn.Conv2d(i, o, 3, padding=1)), _normed(nn.Conv2d(o, o, 3, padding=1))])
        self.past = _normed(nn.Conv2d(i, o, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # (N, i, H, W), (N, condition) -> (N, o, 2H, 2W)
        h = self.convs[0](F.interpolate(F.relu(self.norms[0](x, y)), scale_factor=2.0))
        h = self.convs[1](F.relu(self.norms[1](h, y)))
        twice: Tensor = F.interpolate(self.past(x), scale_factor=2.0) + h
        return twice


class BigGAN(Generator):
    """`width` channels up to 32 pixels a side, then half as many in each block. Without classes y is z's chunk alone.

    Raises BitsError for a latent that has fewer numbers than chunks.
    """

    average: Tensor
    steps: Tensor

    truncates: ClassVar[bool] = True
    jump: ClassVar[float] = 2.0

    def __init__(self, card: Card, latent: int, width: int, classes: int | None = None) -> None:
        super().__init__(card, classes)
        channels, height, self.image_width = card.input
        self.latent, self.height, blocks = latent, height, 1
        while max(height, self.image_width) > BASE * 2**blocks:
            blocks += 1
        if latent <= blocks:
            raise BitsError(f"latent is {latent}; biggan shares it out among {blocks + 1} layers, which is the least.")
        self.base = (-(-height // 2**blocks), -(-self.image_width // 2**blocks))
        first, *chunks = (len(part) for part in torch.arange(latent).tensor_split(blocks + 1))
        self.sizes = [first, *chunks]
        self.shared = nn.Embedding(classes, SHARED) if classes else None
        known = SHARED if classes else 0
        widths = [max(width >> max(i - FULL, 0), min(width, THIN)) for i in range(blocks + 1)]
        self.project = _normed(nn.Linear(first, width * self.base[0] * self.base[1]))
        pairs = zip(widths[:-1], widths[1:], chunks, strict=True)
        self.blocks = nn.ModuleList([Block(i, o, known + chunk) for i, o, chunk in pairs])
        self.last_norm = nn.BatchNorm2d(widths[-1], track_running_stats=False)
        self.last = _normed(nn.Conv2d(widths[-1], channels, 3, padding=1))
        if self.shared is not None:
            nn.init.orthogonal_(self.shared.weight)
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("average", self._weights())
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:  # (N, latent), (N,) -> (N, C, H, W)
        first, *chunks = z.split(self.sizes, 1)
        known = [self.shared(labels)] if self.shared is not None else []
        x = self.project(first).view(len(z), -1, *self.base).contiguous(memory_format=torch.channels_last)
        for block, chunk in zip(self.blocks, chunks, strict=True):
            x = block(x, torch.cat([*known, chunk], 1))
        x = torch.tanh(self.last(F.relu(self.last_norm(x))))[:, :, : self.height, : self.image_width]
        return self.low + (self.high - self.low) * (x + 1) / 2

    def source(self, n: int) -> Tensor:
        return self.normal(n, self.latent)

    def sample(self, n: int) -> tuple[Tensor, Tensor | None]:
        """As every generator's. One that a step may follow first takes what the last one made into the average."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                steps = float(self.steps)
                self.average.lerp_(self._weights(), 1 - min(MEMORY, (1 + steps) / (10 + steps)))
                self.steps += 1
        return super().sample(n)

    @torch.no_grad()
    def draw(self, n: int, unpainted: float = 0.0) -> Tensor:
        """n images of the averaged weights."""
        named = dict(self.named_parameters())
        parts = self.average.split([p.numel() for p in named.values()])
        averaged = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        images: Tensor = functional_call(self, averaged, self.starts(n))
        return images

    def costs(self) -> dict[str, Tensor]:
        weights = (p for name, p in self.named_parameters() if p.dim() > 1 and not name.startswith("shared."))
        return {"orthogonal": ORTHOGONAL * orthogonal_loss(weights)}

    def _weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters()])


def _normed(layer: nn.Module) -> nn.Module:
    """A layer whose weight begins orthogonal and is divided by its largest singular value."""
    assert isinstance(layer.weight, Tensor)
    nn.init.orthogonal_(layer.weight)
    return spectral_norm(layer)
