"""Mixed precision as a stage: bits for each weight, under the budget that the QConfig names."""

from dataclasses import replace

from torch import Tensor

from zaq.ir.nodes import attribute
from zaq.methods.job import Job, Stage
from zaq.quant.placement import place
from zaq.stats.mixed import allocate, sensitivities, sizes

__all__ = ["choose_bits"]

LEAST_BITS = 2


def choose_bits(job: Job, images: Tensor, search: bool = True) -> None:
    """Place the student anew, uncalibrated, at the bits that disturb the teacher least on images (N, C, H, W).

    search: grids of the least error, as in `FakeQuantize.fit_weight`. Raises BitsError for a budget out of reach.
    """
    config = job.qconfig
    fewest = place(job.teacher, replace(config, weight_bits=LEAST_BITS, layer_bits={}), job.card)[1].weights
    size, biases = sizes(job.teacher, fewest)
    target = config.target_size
    if config.average_bits is not None:
        weights = {name: attribute(job.teacher, name).numel() for name in fewest}
        target = biases + sum(
            int(n * config.average_bits / 8) + 4 * len(fewest[name].scale) for name, n in weights.items()
        )
    assert target is not None
    allocate(
        {name: dict.fromkeys(choices, 0.0) for name, choices in size.items()}, size, target, biases
    )  # what cannot be reached, at once
    omega = sensitivities(job.teacher, fewest, images, search, job.batch, job.progress)
    choice = allocate(omega, size, target, biases)
    job.frontier = choice.frontier
    job.use(job.teacher, replace(config, layer_bits=choice.bits))
    job.stages.append(Stage("mixed", len(size), note=f"sum of KL sensitivities {choice.omega:.3g}"))
