"""Models whose output is an image: how like the float model's it is, as there is no other truth."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.data import IMAGES, listed
from zaq.engine.progress import Progress
from zaq.errors import DataError
from zaq.evaluate.models import Model, answers, outputs

__all__ = ["Likeness", "measure_likeness", "psnr", "ssim"]

BATCH = 8
WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
K1, K2 = 0.01, 0.03


@dataclass(frozen=True)
class Likeness:
    """PSNR in dB and SSIM against the float model's images, means over images."""

    psnr: float
    ssim: float
    total: int

    def fields(self) -> dict[str, float]:
        return {"psnr": self.psnr, "ssim": self.ssim, "total": self.total}

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f} against the float model ({self.total} images)"


def measure_likeness(
    model: Model,
    data: str,
    card: Card,
    limit: int | None = None,
    progress: Progress | None = None,
    teacher: Model | None = None,
) -> Likeness:
    """Of one output (N, C, H, W), in units of the range that the teacher's outputs have; see
    `zaq.evaluate.models.Task`.
    """
    if teacher is None:
        raise DataError(
            "--task image compares with the float model, which a run does not hold; name it with --teacher MODEL."
        )
    pairs = []
    for images, found, _ in answers(model, listed(data, card, IMAGES), card, BATCH, limit, progress, data):
        wanted = outputs(teacher, images)
        if len(wanted) != 1 or wanted[0].ndim != 4 or [o.shape for o in found] != [wanted[0].shape]:
            raise DataError(
                "--task image needs one output (N, C, H, W) of both models; this one has "
                f"{[list(o.shape) for o in found]}, "
                f"its teacher {[list(o.shape) for o in wanted]}."
            )
        if min(wanted[0].shape[2:]) < WINDOW:
            raise DataError(
                f"--task image: SSIM needs images of at least {WINDOW} pixels a side, not {list(wanted[0].shape[2:])}."
            )
        pairs.append((torch.from_numpy(found[0]), torch.from_numpy(wanted[0])))
    reach = max(float(b.max()) for _, b in pairs) - min(float(b.min()) for _, b in pairs)
    psnrs, ssims = (torch.cat([of(a, b, reach) for a, b in pairs]) for of in (psnr, ssim))
    return Likeness(float(psnrs.mean()), float(ssims.mean()), len(psnrs))


def psnr(a: Tensor, b: Tensor, reach: float) -> Tensor:
    """10 log10(reach^2 / mean (a - b)^2) of each image, (N, C, H, W) -> (N,); 100 where they are equal."""
    error = (a - b).pow(2).flatten(1).mean(1) / max(reach, 1e-12) ** 2
    return -10 * error.clamp(min=1e-10).log10()


def ssim(a: Tensor, b: Tensor, reach: float) -> Tensor:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004) of each image, (N, C, H, W) -> (N,).

    Means, variances and covariance under a Gaussian of 11 pixels and sigma 1.5, the mean over where it fits.
    """
    channels = a.shape[1]
    line = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    line = (line / line.sum()).to(a)

    def smooth(x: Tensor) -> Tensor:
        for shape in ((1, 1, WINDOW, 1), (1, 1, 1, WINDOW)):
            x = F.conv2d(x, line.view(shape).expand(channels, *shape[1:]), groups=channels)
        return x

    c1, c2 = (K1 * reach) ** 2, (K2 * reach) ** 2
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, cov = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    found = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return found.flatten(1).mean(1)
