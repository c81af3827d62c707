"""Images without a generator: pixels that Adam moves until a frozen network says of them what it should."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zaq.compute.random import drawing
from zaq.engine.stage import Loop, numbers
from zaq.engine.store import Store
from zaq.engine.work import Work

__all__ = ["Pixels"]

SMALLEST_LR = 1e-4  # where a plateau stops making the step smaller
Losses = Callable[[Tensor], dict[str, Tensor]]


class Pixels(Loop):
    """Takes images a part at a time, `steps` steps each, down the sum of losses.

    Args:
        images: (N, C, H, W), where the pixels start; they are not changed.
        losses_of: takes the number of images in a part, and returns what maps these, (n, C, H, W), to losses by name.
        steps: for each part.
        lr: of Adam.
        work: how its steps are taken.
        together: images of a part; all of them by default.
        patience: steps without a smaller loss after which the rate is a tenth.
        bounds: the least and the greatest pixel, (C, 1, 1) each, kept at every step.
        finish: see `Loop`.
        store: keeps the parts that are finished; by default they stay where they are.
    """

    def __init__(
        self,
        images: Tensor,
        losses_of: Callable[[int], Losses],
        steps: int,
        lr: float,
        work: Work,
        *,
        together: int | None = None,
        patience: int | None = None,
        bounds: tuple[Tensor, Tensor] | None = None,
        finish: Callable[[], object] = lambda: None,
        store: Store | None = None,
    ) -> None:
        super().__init__(lambda i: None, finish=finish, resumable=True)
        self.work = work
        self.losses_of, self.each, self.lr, self.patience, self.bounds = losses_of, steps, lr, patience, bounds
        self.images = list(images.split(together or len(images)))  # those whose turn has not come as they were given
        self.store, self.at, self.finished = (
            store,
            -1,
            0,
        )  # the part that is being moved; how many have gone all their steps

    @property
    def length(self) -> int:
        """Steps for all of the parts."""
        return self.each * len(self.images)

    def step(self, i: int, of: int) -> dict[str, float]:
        if i // self.each != self.at:
            self._open(i // self.each)
        found = self.losses(self.x)
        loss = torch.stack(list(found.values())).sum()
        if math.isfinite(float(loss.detach())):
            if self.plateau is None:
                self.optimizer.param_groups[0]["lr"] = self.lr * self.slower
            self.work.step(self.optimizer, loss)
            if self.bounds is not None:
                self.x.data.copy_(self.x.detach().maximum(self.bounds[0]).minimum(self.bounds[1]))
            if self.plateau is not None:
                self.plateau.step(float(loss.detach()))
            self.images[self.at] = self.x.detach()
        self.finished = (i + 1) // self.each
        return numbers(found)

    def chapter(self, i: int) -> int:
        return i // self.each

    def _open(self, at: int) -> None:
        """Begin with the next part."""
        if self.store is not None and self.at >= 0:
            self.images[self.at] = self.store.gather([self.images[self.at]], len(self.images[self.at]))
        self.at, self.drew = at, torch.get_rng_state()  # what labels are drawn by
        self.losses = self.losses_of(len(self.images[at]))
        x = self.images[at].detach().to(self.work.device)
        self.x = x.clone(memory_format=torch.channels_last).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.x], self.lr * self.slower)
        self.plateau = None
        if self.patience is not None:
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, patience=self.patience, factor=0.1, min_lr=SMALLEST_LR
            )

    def save(self) -> Any:
        if self.at < 0:
            return list(self.images), self.at, self.finished, None
        now = copy.deepcopy(self.optimizer.state_dict())
        plateau = self.plateau and dict(self.plateau.state_dict())
        return list(self.images), self.at, self.finished, (self.drew, self.images[self.at].clone(), now, plateau)

    def restore(self, saved: Any) -> None:
        images, at, self.finished, opened = saved
        self.images = list(images)
        if opened is None:
            self.at = -1
            return
        drew, part, now, plateau = opened
        if at != self.at:
            with drawing(0):
                torch.set_rng_state(drew.cpu())
                self._open(at)
        self.x.data.copy_(part)
        self.images[at] = self.x.detach()
        self.optimizer.load_state_dict(now)
        if self.plateau is not None:  # the plateau sets the rate itself
            self.plateau.load_state_dict(dict(plateau))
            self.optimizer.param_groups[0]["lr"] *= self.slower
