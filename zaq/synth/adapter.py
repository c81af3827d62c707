"""A painter whose canvas is photographs, in the place of dead leaves: it moves them to what a teacher remembers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zaq.compute.devices import CPU
from zaq.config.card import Card
from zaq.synth.leaves import Painter

__all__ = ["Adapter", "Photographs"]


@dataclass(frozen=True)
class Photographs:
    """Real images of anything, without labels."""

    pixels: Tensor  # bytes (N, C, H, W) of the model's size, their colours in its order
    place: str  # where they come from, as a report says it
    notes: tuple[str, ...] = ()  # what was done to them


class Adapter(Painter):
    """Repaints photographs, bytes (N, C, H, W); it knows no classes, as they are of none that the teacher knows."""

    def __init__(self, card: Card, width: int, pixels: Tensor) -> None:
        super().__init__(card, width)
        self.pixels = pixels  # no part of its state, as it never changes; a snapshot has it from this call

    def source(self, n: int) -> Tensor:
        """n photographs as the model reads them, at random, half of them mirrored."""
        return self._read(torch.randint(len(self.pixels), (n,)), torch.rand(n) < 0.5)

    @torch.no_grad()
    def moved(self, places: Tensor) -> Tensor:
        """The photographs at these places (n,), moved: one after the other, then all of them again, mirrored."""
        count = len(self.pixels)
        images: Tensor = self(self._read(places % count, places // count % 2 == 1).to(self.low.device))
        return images

    def _read(self, which: Tensor, mirrored: Tensor) -> Tensor:
        images = self.card.normalised(self.pixels[which.to(self.pixels.device)].to(CPU))
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
