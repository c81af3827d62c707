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

__all__ = [
    "GainAdam", "StepAdam", "cosine", "distillation", "frozen", "gain_optimizer", "rate", "student_optimizer", "varied",
]  # fmt: skip

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


class GainAdam(StepAdam):
    """StepAdam for weights that keep their integers: w = g s (code - z), and the scale g s alone is learned.

    `gains` has the weight of each scale, and its axis. A weight lies on its grid and follows its scale, so that no code
    changes. What a scale's gradient is then, the sum of (code - z) dL/dw over its channel, comes from the weight's:
    weights are among the parameters, at a rate of 0, so that their gradients are treated as all others are.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        units: dict[nn.Parameter, Tensor],
        gains: dict[nn.Parameter, tuple[nn.Parameter, int]],
    ) -> None:
        super().__init__([*groups, {"params": [weight for weight, _ in gains.values()], "lr": 0.0}], units)
        self.gains = gains

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        before = {scale: scale.clone() for scale in self.gains}
        for scale, (weight, axis) in self.gains.items():
            if weight.grad is not None:  # else nothing that is learned from depends on it
                dims = [d for d in range(weight.dim()) if d != axis]
                scale.grad = (weight.grad * weight).sum(dims).view(scale.shape) / scale
        super().step(closure)
        for scale, (weight, axis) in self.gains.items():
            weight.mul_(along(scale / before[scale], weight, axis))


def gain_optimizer(student: Student, lr: float, lr_range: float) -> GainAdam:
    """GainAdam over a calibrated student, whose weights are put on their grids: gains and biases at `lr` of their own
    size, the ends of activations' ranges at `lr_range` steps of their grid.
    """
    student.settle()
    gains: dict[nn.Parameter, tuple[nn.Parameter, int]] = {}
    units: dict[nn.Parameter, Tensor] = {}
    for target, quantizer in student.placement.weights.items():
        weight = cast(nn.Parameter, student.weight(target).requires_grad_(True))
        weight.data = quantizer.on_grid(weight.data)
        scale = cast(nn.Parameter, quantizer.scale.requires_grad_(False))
        gains[scale], units[scale] = (weight, quantizer.axis), scale.detach().clone()
    ranges: list[nn.Parameter] = []
    for quantizer in student.placement.activations.values():
        scale = cast(nn.Parameter, quantizer.scale.requires_grad_(not quantizer.guaranteed))
        if not quantizer.guaranteed:
            ranges.append(scale)
            units[scale] = scale.detach() / quantizer.quant_max
    known = {id(p) for p in (*units, *(w for w, _ in gains.values()))}
    known |= {id(q.scale) for q in student.placement.activations.values()}
    biases = [p for p in student.module.parameters() if id(p) not in known]
    units |= {p: p.detach().square().mean().sqrt().clamp(min=1e-12) for p in biases}
    groups = [{"params": [*gains, *biases], "lr": lr}, {"params": ranges, "lr": lr_range}]
    return GainAdam([g for g in groups if g["params"]], units, gains)


def student_optimizer(student: Student, lr: float, lr_bias: float, learn_scales: bool = True) -> StepAdam:
    """StepAdam over a calibrated student: weights and scales at `lr` steps of their grid, biases at `lr_bias`."""
    units: dict[nn.Parameter, Tensor] = {}
    for target, quantizer in student.placement.weights.items():
        weight = student.weight(target).requires_grad_(True)
        units[cast(nn.Parameter, weight)] = along(quantizer.scale.detach().clone(), weight, quantizer.axis)
    for some in (student.placement.weights, student.placement.activations):
        for quantizer in some.values():
            quantizer.scale.requires_grad_(learn_scales and not quantizer.guaranteed)
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
