"""How networks are run and learn: on which device, at what precision, in how many processes.

The one place where gradients are taken. A stage asks its task for a network (`Task.teacher_at`, `State.student_at`) and
takes its steps by `Work.step`; all else it computes in float32, of the whole batch, as if there were one process.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from zaq.compute.devices import CPU
from zaq.compute.processes import averaged, sharing, whole, world
from zaq.errors import UserError, unknown

__all__ = ["PRECISIONS", "Work"]

PRECISIONS: dict[str, torch.dtype | None] = {  # as Lightning Fabric spells them
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
Network = Callable[[Tensor], Any]  # images (N, C, H, W), or what enters a block -> what a graph returns, in float32


@dataclass(frozen=True)
class Work:
    """Where and how the networks of a run compute.

    precision: of the products of teacher and student, one of PRECISIONS. What rounds, and every loss, stays in float32.

    Raises UserError for a precision that there is not, or that the device lacks.
    """

    device: torch.device = CPU
    precision: str = "32-true"
    _scaler: torch.amp.GradScaler = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError("--precision: " + unknown("precision", self.precision, PRECISIONS))
        half = self.precision == "16-mixed"
        if half and self.device.type == "cpu":
            raise UserError("--precision 16-mixed: needs a GPU, and the device is cpu; take bf16-mixed, or 32-true.")
        # small gradients are nothing in float16: losses are multiplied, and gradients divided again
        object.__setattr__(self, "_scaler", torch.amp.GradScaler(self.device.type, enabled=half))

    def network(self, gm: GraphModule) -> Network:
        """A graph as stages run it: its share of the batch, in this precision; it returns the whole in float32."""

        def run(x: Tensor) -> Any:
            with sharing(len(x)) as mine, self.autocast():
                found = gm(x if mine is None else x[mine])
            return pytree.tree_map_only(Tensor, lambda t: _plain(t if mine is None else whole(t)), found)

        return run

    @property
    def plain(self) -> bool:
        """Whether what a network holds inside is what it returns: float32, and of the whole batch."""
        return world() == 1 and PRECISIONS[self.precision] is None

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, convolutions and products compute in half precision, where that was asked for."""
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step down a loss."""
        optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        averaged([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
        self._scaler.step(optimizer)
        self._scaler.update()

    def gradient(self, loss: Tensor, x: Tensor) -> Tensor:
        """The gradient of a loss at x, of its shape."""
        (found,) = torch.autograd.grad(self._scaler.scale(loss), x)
        averaged([found])
        return found / self._scaler.get_scale()

    def ascent(self, networks: Sequence[Network], loss_of: Callable[..., Tensor], x: Tensor, rows: int) -> Tensor:
        """The gradient at images x, (N, C, H, W), of a loss of the outputs of several networks, a list of each.

        First what each output counts, without a gradient; then network by network and `rows` images at a time, as what
        is kept for a gradient takes most memory by far.
        """
        with torch.no_grad():
            ends = [[y.detach().clone().requires_grad_(True) for y in network(x)[0]] for network in networks]
        flat = [y for of_one in ends for y in of_one]
        slopes = iter(torch.autograd.grad(loss_of(*ends), flat))
        rows = rows if all(len(y) == len(x) for y in flat) else len(x)
        found = torch.zeros_like(x)
        for network, of_one in zip(networks, ends, strict=True):
            counts = [next(slopes).split(rows) if rows < len(x) else (next(slopes),) for _ in of_one]
            for i, part in enumerate(x.split(rows)):
                part = part.detach().clone().requires_grad_(True)
                loss = torch.stack([(y * c[i]).sum() for y, c in zip(network(part)[0], counts, strict=True)]).sum()
                found[i * rows :][: len(part)] += self.gradient(loss, part)
        return found


def _plain(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x
