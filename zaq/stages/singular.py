"""A watch on the largest singular values of every weight, which tell of a collapse before a loss does.

Brock et al. (BigGAN, section 4): in a generator that is about to collapse the largest singular value explodes, and in
who it plays against it jumps. Three of each weight are followed by power iteration with Gram-Schmidt, one a step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.compute.random import drawing
from zaq.engine.stage import Diverged

__all__ = ["SIGMAS", "Watch", "top_singular_values"]

SIGMAS = ("sigma 1 of ", "sigma 2 of ", "sigma 3 of ")  # what they are called in a log, before the weight
FIRST = 10  # iterations at the start
MEMORY = 0.9  # of what is usual
LEAST = 0.01  # a value below cannot jump
ROWS = 100  # of a stage's log, at most, that have them all


class Watch:
    """Follows the weights of some networks, and says when one jumps to more than `jump` times what is usual; 0: never,
    and nothing is followed.
    """

    def __init__(self, networks: Mapping[str, nn.Module], jump: float, steps: int) -> None:
        self.jump, self.every = jump, max(steps // ROWS, 1)
        self.weights = {
            f"{who} {name}".replace("parametrizations.weight.original", "weight"): p
            for who, network in networks.items()
            for name, p in network.named_parameters()
            if jump and p.dim() > 1
        }
        with drawing(0):
            self.bases = {name: torch.randn(len(w), len(SIGMAS)).to(w.device) for name, w in self.weights.items()}
        self.usual: dict[str, float] = {}
        for _ in range(FIRST if jump else 0):
            found = self._look()
        if jump:
            self.usual = {name: float(values[0]) for name, values in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step."""
        return {"bases": dict(self.bases), "usual": dict(self.usual)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Put that back."""
        self.bases, self.usual = dict(saved["bases"]), dict(saved["usual"])

    def step(self, i: int) -> dict[str, float]:
        """Look once, behind step `i`; now and then return all for the log. Raises Diverged where one has jumped."""
        found = {name: values.tolist() for name, values in self._look().items()}
        for name, (largest, *_) in found.items():
            if not largest <= self.jump * max(self.usual[name], LEAST):
                raise Diverged(
                    f"the largest singular value of {name} jumped from {self.usual[name]:.3g} to {largest:.3g}"
                )
            self.usual[name] = MEMORY * self.usual[name] + (1 - MEMORY) * largest
        if i % self.every:
            return {}
        return {f"{which}{name}": v for name, values in found.items() for which, v in zip(SIGMAS, values, strict=False)}

    def _look(self) -> dict[str, Tensor]:
        return {name: self._one(name, weight.detach()) for name, weight in self.weights.items()}

    def _one(self, name: str, weight: Tensor) -> Tensor:
        values, self.bases[name] = top_singular_values(weight, self.bases[name])
        return values


@torch.no_grad()
def top_singular_values(weight: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One power iteration on a weight (rows, ...) from a basis (rows, k): its k largest singular values as they are
    known by now, the largest first, and the basis to go on from. k is no more than the weight's rank can be.
    """
    matrix = weight.flatten(1)
    right = _orthonormal(matrix.T @ basis[:, : min(matrix.shape)])
    product = matrix @ right
    left = _orthonormal(product)
    return (left * product).sum(0), left


def _orthonormal(columns: Tensor) -> Tensor:
    """Gram-Schmidt on the columns of (rows, k)."""
    done: list[Tensor] = []
    for column in columns.unbind(1):
        for other in done:
            column = column - (other @ column) * other
        done.append(F.normalize(column, dim=0))
    return torch.stack(done, 1)
