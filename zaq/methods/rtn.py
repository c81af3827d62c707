"""Round to nearest: the naive baseline ("RQ" in ZAQ's tables), which every other method has to beat."""

from dataclasses import dataclass

import torch

from zaq.methods.job import Job, Stage

__all__ = ["RTN"]


@dataclass(frozen=True)
class RTN:
    """Weights rounded over their whole range, activation ranges from the least and the greatest value that noise causes.

    The noise is what tools that ask for data are fed without any: standard normal in the model's normalised space.
    """

    batches: int = 4
    observer: str = "minmax"  # one of OBSERVERS
    search: bool = False  # True: weight grids of the least error instead of the whole range

    def __call__(self, job: Job) -> None:
        low, high = job.card.bounds()
        noise = [torch.randn(job.batch, *job.card.input).maximum(low).minimum(high) for _ in range(self.batches)]
        job.fit_weights(self.search)
        with job.calibrating(self.observer), torch.no_grad():
            for i in job.progress.track("calibrate", self.batches):
                job.student(noise[i])
        job.samples = torch.cat(noise)
        job.stages.append(Stage("calibrate", self.batches))
