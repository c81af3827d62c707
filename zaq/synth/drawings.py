"""Images of strokes on paper, as letters and signs are: thin, sharp and of full contrast, which no photograph is and no
painted image. What reads text sees values there that neither causes.
"""

import torch
from torch import Tensor

from zaq.compute.random import drawing
from zaq.config.card import Card
from zaq.engine.task import Task
from zaq.synth.leaves import leaves
from zaq.synth.losses import batch_norm_loss, channel_moments

__all__ = ["drawings", "reads_drawings"]

READS = "reads drawings"  # where a teacher's graph keeps the answer
SHOWN = 16  # images of each kind, to be compared
CELLS = (8, 32)  # pixels a side: a cell holds a sign
STROKES = 3  # of a sign, straight or round
WIDTHS = (0.06, 0.2)  # of a stroke, half of it, in parts of half a cell
BLANK = 0.3  # part of the cells that hold nothing
LIKE = 2.25  # times the leaves' distance: readers of text have 0.8 to 2.1, networks for photographs 2.5 to 8.5
PLAIN = 0.7  # part of the images whose paper is black or white, with ink of the other


def drawings(n: int, card: Card) -> Tensor:
    """n images (n, C, H, W) as the model reads them: a grid of signs of a few strokes each, in one ink on one paper."""
    channels, height, width = card.input
    low, high = CELLS
    side = low * (high / low) ** torch.rand(n, 1)

    def places(count: int) -> tuple[Tensor, Tensor]:
        """Of each pixel along one side: which cell it is in, and where there, from -1 to 1; both (n, count)."""
        at = (torch.arange(count) + 0.5 + side * torch.rand(n, 1)) / side
        return at.floor().long(), 2 * at.frac() - 1

    (row, down), (column, right) = places(height), places(width)
    down, right = down[:, :, None], right[:, None]
    columns = int(column.max()) + 1
    cell = (row[:, :, None] * columns + column[:, None]).flatten(1)  # (n, H W)

    def some() -> Tensor:
        """A number for each cell, from 0 to 1, where its pixels are: (n, H, W)."""
        return torch.rand(n, int(cell.max()) + 1).gather(1, cell).view(n, height, width)

    inked = torch.zeros(n, height, width, dtype=torch.bool)
    thick = WIDTHS[0] + (WIDTHS[1] - WIDTHS[0]) * torch.rand(n, 1, 1)
    for _ in range(STROKES):
        x, y, angle = right - some() + 0.5, down - some() + 0.5, 2 * torch.pi * some()
        along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        straight = (across.abs() < thick) & (along.abs() < 0.7)
        ring = ((x**2 + y**2).sqrt() - 0.2 - 0.4 * some()).abs() < thick
        inked |= torch.where(some() < 0.6, straight, ring)
    inked &= some() >= BLANK
    paper, ink = torch.rand(2, n, channels, 1, 1)
    white = (torch.rand(n, 1, 1, 1) < 0.5).float()
    plain = torch.rand(n, 1, 1, 1) < PLAIN
    paper, ink = torch.where(plain, white, paper), torch.where(plain, 1 - white, ink)
    darkest, lightest = card.bounds()
    images = darkest + (lightest - darkest) * torch.where(inked[:, None], ink, paper)
    return images.contiguous(memory_format=torch.channels_last)


def reads_drawings(task: Task) -> bool:
    """Whether what batch norms remember, be it few of them, is about as like drawings as it is like dead leaves; the
    same for every seed. A network without any is taken for one of photographs. Looked at once a teacher: several stages
    ask.
    """
    meta = task.teacher.meta
    if READS not in meta:
        meta[READS] = _reads_drawings(task)
    found: bool = meta[READS]
    return found


@torch.no_grad()
def _reads_drawings(task: Task) -> bool:
    card, known = task.card, task.batch_norms()
    if not known:
        return False
    tapped = task.teacher_at(list(known), of=channel_moments)
    with drawing(0):
        shown = leaves(SHOWN, card), drawings(SHOWN, card)
    far = [float(batch_norm_loss(tapped(x.to(task.device))[1], list(known.values()))) for x in shown]
    return far[1] < LIKE * far[0]
