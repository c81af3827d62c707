"""ZeroQ (Cai, Yao, Dong, Gholami, Mahoney, Keutzer; CVPR 2020).

One batch of images is optimised from noise until it has the statistics that the teacher's batch norms remember,

    min over x of  sum_i ||mu_i(x) - mu_i||^2 + ||sigma_i(x) - sigma_i||^2,

and activation ranges are read from it; weights are rounded to nearest. With `--bits mixed` each weight gets bits of its
own, from how much it disturbs the teacher on that batch (`quant.mixed`), which the paper has and its code never had.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zaq.errors import SourceError
from zaq.ir.taps import with_taps
from zaq.methods.job import Job, Stage
from zaq.methods.mix import choose_bits
from zaq.synth.distil import distil
from zaq.synth.losses import sample_statistics_loss, standard

__all__ = ["ZeroQ"]

STEPS = {"fast": 60, "default": 250, "best": 500}  # effort: iterations; best is the paper's


@dataclass(frozen=True)
class ZeroQ:
    """The paper's constants, as its code has them. `None`: set by the effort."""

    batch: int = 32  # images (readme: 64); fewer where they are large, but for effort best
    steps: int | None = None
    lr: float = 0.5  # Adam, on pixels
    patience: int = 100  # steps without progress after which the rate is a tenth, down to 1e-4
    noise: float = 255 / 5418.75  # width of the uniform noise at the start: its variance, where a deviation was meant
    search: bool = False  # True: weight grids of the least error instead of the whole range
    observer: str = "minmax"  # one of OBSERVERS

    mixes = True  # finds bits for `--bits mixed`

    def __call__(self, job: Job) -> None:
        """Quantize `job.student` in place: distil, choose bits if asked to, round, calibrate."""
        images = self.images(job)
        job.samples = job.in_bounds(images)
        if job.qconfig.mixed:
            choose_bits(job, images, self.search)
        job.fit_weights(self.search)
        parts = images.split(job.batch)
        job.calibrate(parts, len(parts), self.observer)

    def images(self, job: Job) -> Tensor:
        """One batch (n, C, H, W) with the teacher's statistics; raises SourceError where it has none."""
        stats = job.batch_norms()
        if not stats:
            raise SourceError(
                "zeroq lives on the statistics of batch norms, and this model has none that folds into a layer; --method zaq needs none."
            )
        teacher, pixels = with_taps(job.teacher, list(stats)), standard(job.card.input[0])

        def losses(x: Tensor) -> dict[str, Tensor]:
            features = teacher(x)[1]
            return {
                "layers": sample_statistics_loss(features, list(stats.values())),
                "input": sample_statistics_loss([x], [pixels]),
            }

        count = self.batch if job.effort == "best" else min(self.batch, job.batch)
        start = self.noise * (torch.rand(count, *job.card.input) - 0.5)
        steps = STEPS[job.effort] if self.steps is None else self.steps
        found = distil(start, losses, steps, self.lr, patience=self.patience, progress=job.progress, log=job.log)
        job.interrupted |= found.interrupted
        job.stages.append(Stage("distil", found.steps, note=found.note))
        return found.images
