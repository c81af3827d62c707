"""Images without a generator: pixels that Adam moves until a frozen network says what it should of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zaq.engine.progress import Progress

__all__ = ["Distilled", "distil", "shifted"]

SMALLEST_LR = 1e-4  # where a plateau stops making the step smaller


@dataclass(frozen=True)
class Distilled:
    """The images, and how far the descent came: a note and `interrupted` where that was not the end."""

    images: Tensor  # (N, C, H, W)
    steps: int
    note: str
    interrupted: bool


def distil(
    images: Tensor,
    losses: Callable[[Tensor], dict[str, Tensor]],
    steps: int,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    patience: int | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
    name: str = "distil",
    progress: Progress | None = None,
    log: Callable[..., None] = lambda *_, **__: None,
) -> Distilled:
    """Go down the sum of `losses(images)` from the images given, which are not changed; log each by its name.

    `patience`: steps without a smaller loss after which the rate is a tenth. `bounds`: least and greatest pixel, kept
    at every step. A loss that is not finite ends it with the last images whose loss was, Ctrl-C with those it found.
    """
    x = images.detach().clone(memory_format=torch.channels_last).requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr, betas)
    plateau = None
    if patience is not None:
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=patience, factor=0.1, min_lr=SMALLEST_LR
        )
    good, done, note, interrupted = images, 0, "", False
    try:
        for i in (progress or Progress()).track(name, steps):
            found = losses(x)
            loss = torch.stack(list(found.values())).sum()
            if not math.isfinite(float(loss.detach())):
                note = f"stopped at step {i} of {steps}: the loss became NaN"
                break
            good = x.detach().clone()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if bounds is not None:
                x.data.copy_(x.detach().maximum(bounds[0]).minimum(bounds[1]))
            if plateau is not None:
                plateau.step(float(loss.detach()))
            done = i + 1
            log(name, i, **{k: float(v.detach()) for k, v in found.items()})
    except KeyboardInterrupt:
        interrupted, note = True, f"interrupted after step {done} of {steps}"
    broken = (bool(note) and not interrupted) or not bool(torch.isfinite(x).all())
    return Distilled(good if broken else x.detach(), done, note, interrupted)


def shifted(images: Tensor, reach: int) -> Tensor:
    """All images rolled by up to `reach` pixels either way, and mirrored every other time: no pixel can be a trick."""
    down, right, mirror = (int(torch.randint(n, ())) for n in (2 * reach + 1, 2 * reach + 1, 2))
    rolled = images.roll((down - reach, right - reach), (2, 3))
    return rolled.flip(3) if mirror else rolled
