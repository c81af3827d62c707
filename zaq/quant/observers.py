"""Observers: what an activation range is read from. Any of torch.ao's fits beside these."""

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from zaq.config.constants import named
from zaq.errors import TrainingError
from zaq.quant.aciq import clip_range
from zaq.quant.ao import ObserverBase
from zaq.quant.qparams import grid_of, search_range

__all__ = ["OBSERVERS", "EMAObserver", "GaussObserver", "LaplaceObserver", "MSEObserver", "Observer", "RangeObserver"]

KEPT_PER_BATCH = 4096  # values of a batch that the search looks at


class RangeObserver(ObserverBase):
    """The least and the greatest value seen, where all outside of `limits` counts as their end: see `quant.ranges`."""

    low: Tensor
    high: Tensor

    def __init__(
        self, quant_min: int = 0, quant_max: int = 255, limits: tuple[float, float] | None = None, **_: Any
    ) -> None:
        super().__init__(dtype=torch.quint8)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.limits = limits or (-torch.inf, torch.inf)
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    def inside(self, x: Tensor) -> Tensor:
        return x.detach().clamp(*self.limits)  # a NaN stays one

    def forward(self, x: Tensor) -> Tensor:
        low, high = torch.aminmax(self.inside(x))
        self.low, self.high = torch.minimum(self.low, low.float()), torch.maximum(self.high, high.float())
        return x

    def range(self) -> tuple[Tensor, Tensor]:
        """The range to quantize; [0, 0] where nothing was seen."""
        if self.low > self.high:
            return torch.zeros_like(self.low), torch.zeros_like(self.low)
        if not (torch.isfinite(self.low) and torch.isfinite(self.high)):
            raise TrainingError(
                f"a range is to be read from values that are NaN or infinite (from {float(self.low):g} to "
                f"{float(self.high):g}): the images, or what the network makes of them, are no numbers."
            )
        return self.low.clamp(*self.limits), self.high.clamp(*self.limits)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        return grid_of(self.quant_min)(*self.range(), self.quant_min, self.quant_max)


class MSEObserver(RangeObserver):
    """The part of the seen range with the least sum |x^ - x|^2.4 over a sample of the values seen (BRECQ, QDrop)."""

    def __init__(self, quant_min: int = 0, quant_max: int = 255, **kwargs: Any) -> None:
        super().__init__(quant_min, quant_max, **kwargs)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        values = self.inside(x).flatten()
        index = torch.randint(len(values), (min(len(values), KEPT_PER_BATCH),)).to(x.device)
        self.seen.append(values[index])
        return super().forward(x)

    def range(self) -> tuple[Tensor, Tensor]:
        low, high = super().range()
        if not self.seen:
            return low, high
        grid = grid_of(self.quant_min)
        found = search_range(torch.cat(self.seen)[None], low[None], high[None], self.quant_min, self.quant_max, grid)
        return found[0][0], found[1][0]


class EMAObserver(RangeObserver):
    """Moving averages of each batch's least and greatest value (GDFQ; its code divides by 1 - 0.9^t besides)."""

    DECAY = 0.9

    def forward(self, x: Tensor) -> Tensor:
        low, high = (v.float() for v in torch.aminmax(x.detach()))
        first = self.low > self.high
        self.low = low if first else self.DECAY * self.low + (1 - self.DECAY) * low
        self.high = high if first else self.DECAY * self.high + (1 - self.DECAY) * high
        return x


class LaplaceObserver(RangeObserver):
    """ACIQ: the range that a Laplace distribution with the mean and the mean deviation seen is best clipped to."""

    DISTRIBUTION = "laplace"

    def __init__(self, quant_min: int = 0, quant_max: int = 255, **kwargs: Any) -> None:
        super().__init__(quant_min, quant_max, **kwargs)
        self.sums = torch.zeros(3, dtype=torch.double)  # batches, their mean, their deviation

    def forward(self, x: Tensor) -> Tensor:
        seen = self.inside(x)
        mean, std = seen.mean(), seen.std()
        deviation = (seen - mean).abs().mean() if self.DISTRIBUTION == "laplace" else std
        self.sums += torch.stack([torch.ones_like(mean), mean, deviation]).cpu().double()
        return super().forward(x)

    def range(self) -> tuple[Tensor, Tensor]:
        low, high = super().range()
        count, mean, deviation = self.sums.tolist()
        if not count:
            return low, high
        bits = round(math.log2(self.quant_max - self.quant_min + 1))
        found = clip_range(
            mean / count, deviation / count, bits, float(low), float(high), self.DISTRIBUTION, self.quant_min < 0
        )
        return torch.tensor(found[0]), torch.tensor(found[1])


class GaussObserver(LaplaceObserver):
    """The same for a normal distribution."""

    DISTRIBUTION = "gauss"


OBSERVERS: dict[str, type[RangeObserver]] = {
    "minmax": RangeObserver,
    "ema": EMAObserver,
    "mse": MSEObserver,
    "laplace": LaplaceObserver,
    "gauss": GaussObserver,
}
Observer = Annotated[str, named("observer", OBSERVERS)]  # the name of one, as a constant
