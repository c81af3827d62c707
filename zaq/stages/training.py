"""What methods that train a student share: its optimizers, and how it is held still."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.engine.stage import Diverged
from zaq.quant.op import along
from zaq.quant.student import Student
from zaq.synth.generators import alike

__all__ = ["StepAdam", "cosine", "distillation", "frozen", "rate", "student_optimizer", "varied"]

FASTEST = 2e-3  # learning rate of a student, in steps of the grid, whatever `travel` allows, unless said otherwise


class StepAdam(torch.optim.Adam):
    """Adam whose learning rate counts in steps of each channel's grid: scale-free, whatever folding did to a channel.

    `units` maps a parameter to a tensor that broadcasts to it; an update is multiplied by it.
    """

    def __init__(self, groups: list[dict[str, Any]], units: dict[nn.Parameter, Tensor]) -> None:
        super().__init__(groups)
        self.units = units

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        before = {p: p.clone() for p in self.units}
        super().step(closure)
        for p, unit in self.units.items():
            p.sub_(before[p]).mul_(unit).add_(before[p])


def student_optimizer(
    student: Student, lr: float, lr_bias: float, learn_scales: bool = True, weights: bool = True
) -> StepAdam:
    """StepAdam over a calibrated student: weights and scales at `lr` steps of their grid, biases at `lr_bias`.

    Without `weights`, these and their scales stay as they are.
    """
    units: dict[nn.Parameter, Tensor] = {}
    for target, quantizer in student.placement.weights.items():
        weight = student.weight(target).requires_grad_(weights)
        units[cast(nn.Parameter, weight)] = along(quantizer.scale.detach().clone(), weight, quantizer.axis)
    for some, learned in (
        (student.placement.weights, learn_scales and weights),
        (student.placement.activations, learn_scales),
    ):
        for quantizer in some.values():
            quantizer.scale.requires_grad_(learned and not quantizer.guaranteed)
            units[cast(nn.Parameter, quantizer.scale)] = quantizer.scale.detach() / quantizer.quant_max
    known, units = {id(p) for p in units}, {p: u for p, u in units.items() if p.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in units if p.dim() > 1], "lr": lr},
        {"params": [p for p in units if p.dim() == 1], "lr": lr},
        {"params": [p for p in student.module.parameters() if id(p) not in known], "lr": lr_bias},
    ]
    return StepAdam([g for g in groups if g["params"]], units)


def cosine(progress: float) -> float:
    """The factor on a learning rate, from 1 to 0 over progress in [0, 1)."""
    return (1 + math.cos(math.pi * progress)) / 2


def rate(travel: float, steps: float, fastest: float = FASTEST) -> float:
    """The learning rate at which a weight may travel `travel` steps of its grid. Adam moves it by about the rate at
    every step, so their sum is the way: `steps` is the sum of the schedule's factors. Never above `fastest`.
    """
    return min(fastest, travel / max(steps, 1))


def distillation(q: Tensor, p: Tensor, temperature: float, reduction: str = "batchmean") -> Tensor:
    """T^2 KL(softmax(P / T) || softmax(Q / T)) of a student's and a teacher's logits, (N, K) each (Hinton et al. 2015).

    "batchmean" is a mean over samples. "mean" is what torch calls so: over classes as well, so that the weight is T^2 /
    K.
    """
    kl = F.kl_div((q / temperature).log_softmax(1), (p / temperature).softmax(1), reduction="batchmean")
    return temperature**2 * (kl / q.shape[1] if reduction == "mean" else kl)


def varied(images: Tensor, card: Card) -> Tensor:
    """Images (N, C, H, W) that a generator has drawn. Raises Diverged for those that are no numbers, or all alike."""
    if not bool(images.detach().isfinite().all()):
        raise Diverged("the generator's images became NaN or infinite")
    if alike(images, card):
        raise Diverged("the generator's images became all alike")
    return images


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, the module's parameters take no gradient, which saves a generator's step a third of its time."""
    learned = [p for p in module.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learned:
            p.requires_grad_(True)
