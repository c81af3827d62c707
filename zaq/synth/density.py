"""How alike two sets of images are: precision, recall, density and coverage (Naeem et al. 2020).

Around each sample of a set lies a ball that reaches to its k-th nearest neighbour in the same set. With d_ij the
distance of real i to drawn j, and r_i the radius of real i:

    precision = mean_j [any_i d_ij < r_i]        recall   = mean_i [any_j d_ij < r_j of the drawn]
    density   = 1 / (k M) sum_j sum_i [d_ij < r_i]        coverage = mean_i [min_j d_ij < r_i]

Density may exceed 1. A single odd image makes a large ball, which precision and recall are fooled by; density and
coverage are not. Distances are Euclidean, between what the last layer of the teacher reads.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from zaq.config.memory import at_once
from zaq.engine.task import Task
from zaq.errors import UserError
from zaq.ir.ops import CONVS, TRANSPOSED
from zaq.ir.taps import with_taps
from zaq.quant.edges import weighted_layers

__all__ = ["NEIGHBOURS", "Alike", "features", "measure"]

NEIGHBOURS = 5  # k of the paper
DISTANCES = 2**23  # that are in memory at once


@dataclass(frozen=True)
class Alike:
    """How `drawn` images are like `real` ones, as a part of each; `expected`: the coverage of equal distributions."""

    real: int  # how many
    drawn: int
    neighbours: int
    precision: float
    recall: float
    density: float
    coverage: float
    expected: float

    @property
    def low(self) -> bool:
        """Whether less than half as many of the real are covered as would be by images of their own distribution."""
        return self.coverage < self.expected / 2

    def __str__(self) -> str:
        values = ", ".join(f"{name} {getattr(self, name):.3f}" for name in ("precision", "recall", "density"))
        return f"{values}, coverage {self.coverage:.3f} ({self.expected:.3f} where both are of one distribution)"


def measure(real: Tensor, drawn: Tensor, k: int = NEIGHBOURS) -> Alike:
    """Compare features of N real images, (N, F), with those of M drawn ones, (M, F), some rows at a time.

    Computed in float64 on the CPU. Raises UserError where either has no k neighbours.
    """
    if min(len(real), len(drawn)) <= k:
        raise UserError(f"{min(len(real), len(drawn))} images are too few: with {k} neighbours, {k + 1} are the least.")
    real, drawn = real.double().cpu(), drawn.double().cpu()
    around_real, around_drawn = _radii(real, k), _radii(drawn, k)
    in_balls = torch.zeros(len(drawn), dtype=torch.int64)  # of the real that each drawn one lies in
    recalled = covered = 0
    rows = at_once(DISTANCES, drawn.shape[:1])
    for part, radius in zip(real.split(rows), around_real.split(rows), strict=True):
        far = _distances(part, drawn)
        inside = far < radius[:, None]
        in_balls += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((far < around_drawn).any(1).sum())
    n, m = len(real), len(drawn)
    density = float(in_balls.sum()) / (k * m)
    precision = float((in_balls > 0).sum()) / m
    return Alike(n, m, k, precision, recalled / n, density, covered / n, _expected(n, m, k))


def _expected(n: int, m: int, k: int) -> float:
    """E coverage = 1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)): no drawn one is among the k nearest of all."""
    return 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th nearest other row, (N,)."""
    parts = x.split(at_once(DISTANCES, x.shape[:1]))
    return torch.cat([_distances(part, x).kthvalue(k + 1, 1).values for part in parts])  # it is its own nearest


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Exactly 0 between equal rows, which a distance by products of matrices is not."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def features(task: Task, batches: Iterable[Tensor]) -> Tensor:
    """What the last layer with a weight reads of images, (N, F): a mean over all but samples and channels."""
    last = weighted_layers(task.teacher)[-1]
    is_conv = last.target in CONVS | TRANSPOSED
    network = with_taps(task.teacher, [last.all_input_nodes[0].name])

    def pooled(x: Tensor) -> Tensor:
        return x.flatten(2).mean(2) if is_conv and x.dim() > 2 else x.flatten(1, -2).mean(1) if x.dim() > 2 else x

    return torch.cat([pooled(network(x.to(task.device))[1][0]).cpu() for x in batches])
