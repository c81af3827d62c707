"""Round to nearest: the naive baseline ("RQ" in ZAQ's tables), which every other method has to beat."""

from dataclasses import dataclass

import torch

from zaq.methods.job import Job

__all__ = ["RTN"]


@dataclass(frozen=True)
class RTN:
    """Weights rounded over their whole range, activation ranges from the least and the greatest value that noise
    causes.

    The noise is what tools that ask for data are fed without any: standard normal in the model's normalised space.
    """

    batches: int = 4
    observer: str = "minmax"  # one of OBSERVERS
    search: bool = False  # True: weight grids of the least error instead of the whole range

    def __call__(self, job: Job) -> None:
        noise = [job.noise() for _ in range(self.batches)]
        job.fit_weights(self.search)
        job.calibrate(noise, self.batches, self.observer)
        job.samples = torch.cat(noise)
