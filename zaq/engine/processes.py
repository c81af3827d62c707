"""Several processes that do one run together: each computes its share of every batch, and all know the whole of it.

Every process draws the same numbers and takes the same decisions; what is shared out is the work that costs, running
networks. A process runs its rows of a batch, and gathers what the others made of theirs: so statistics over a batch are
those of the whole batch, and N processes follow one. With no process group, or one process, all of this does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["agreed", "any_of_all", "averaged", "is_first", "rows", "sent", "sharing", "uniform", "whole", "world"]

_shared = False  # whether what runs now runs some rows of its batch


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes: rank 0, or the only one."""
    return world() == 1 or dist.get_rank() == 0


def rows(count: int) -> slice | None:
    """This process's rows of a batch; None where the batch cannot be shared out evenly: then each runs all of it."""
    parts = world()
    if parts == 1 or count % parts:
        return None
    each = count // parts
    return slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)


@contextmanager
def sharing(count: int) -> Iterator[slice | None]:
    """Inside, a network runs this process's rows of a batch, which are handed out: see `rows`."""
    global _shared
    before, mine = _shared, rows(count)
    _shared = mine is not None
    try:
        yield mine
    finally:
        _shared = before


def uniform(x: Tensor) -> Tensor:
    """Numbers from 0 to 1 in the shape of a tensor of images or features (N, ...), drawn on the CPU: inside a network
    that is shared out this process's rows of those of the whole batch.
    """
    if not _shared:
        return torch.rand(x.shape).to(x.device)
    drawn = torch.rand(len(x) * world(), *x.shape[1:])
    return drawn[dist.get_rank() * len(x) :][: len(x)].to(x.device)


def whole(x: Tensor) -> Tensor:
    """The batch (N, ...) that every process made its rows of, in the order of processes."""
    gathered: Tensor = _Whole.apply(x)  # type: ignore[no-untyped-call]
    return gathered


class _Whole(torch.autograd.Function):
    """Gathers rows. Every process has the gradient of the same loss: each takes its own rows of it, times the number of
    processes, over which `averaged` divides.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.count = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        found = torch.cat(parts)
        lies = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return found.contiguous(memory_format=torch.channels_last) if lies else found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        first = dist.get_rank() * ctx.count
        return gradient[first : first + ctx.count] * world()


def averaged(gradients: list[Tensor]) -> None:
    """Put the mean over all processes in the place of each."""
    if world() == 1:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])  # one message
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world()).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


def agreed(values: dict[str, float]) -> dict[str, float]:
    """Numbers as the first process has them: what is decided by them is then decided alike."""
    if world() == 1 or not values:
        return values
    found = sent(values)
    assert isinstance(found, dict)
    return found


def any_of_all(here: bool) -> bool:
    """Whether it is so in any of the processes."""
    if world() == 1:
        return here
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, here)
    return any(found)


def sent(value: Any) -> Any:
    """What the first process has, in all of them."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
