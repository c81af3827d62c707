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
from zaq.ir.taps import with_taps

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

    def tapped(self, gm: GraphModule, names: Sequence[str], of: Callable[[Tensor], Any] | None = None) -> Network:
        """A graph as `network` runs it, which returns ([outputs], [features at these nodes, or what `of` makes of each
        of them]). `of` is asked inside the graph (see `with_taps`); where several processes run a part of the batch
        each, it is asked once the whole is there."""
        if of is None or world() == 1:
            return self.network(with_taps(gm, list(names), of))
        gathered = self.network(with_taps(gm, list(names)))

        def run(x: Tensor) -> tuple[list[Tensor], list[Any]]:
            outputs, features = gathered(x)
            return outputs, [of(feature) for feature in features]

        return run

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


def _plain(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x
