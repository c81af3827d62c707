"""Several processes that do one run together: each computes its share of every batch, and all know the whole of it.

Every process draws the same numbers and takes the same decisions; what is shared out is the work that costs, running
networks. A process runs its rows of a batch, and gathers what the others made of theirs: so statistics over a batch are
those of the whole batch, and N processes follow one. The first one alone writes files and speaks to the user. With no
process group, or one process, all of this does nothing.
"""

import logging
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from zaq.errors import RunError, UserError

__all__ = ["averaged", "is_first", "launch", "sent", "sharing", "together", "uniform", "whole", "world"]

LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|timed out", re.I)

T = TypeVar("T")

_shared = False  # whether what runs now runs some rows of its batch


def launch(device: torch.device, count: int, nodes: int = 1) -> torch.device:
    """Start the processes that there are to be of this one, by Lightning Fabric: each runs the same command line from
    its beginning, and comes here. Returns the device of this process.

    Args:
        device: of which kind they take one each; CPU processes share the processor.
        count: processes, on each of `nodes` machines. Where a queue has started them (SLURM, torchrun), so many there.

    Raises UserError where Lightning Fabric is not installed, or the machine has fewer devices.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.utilities.exceptions import MisconfigurationException
    except ImportError as error:
        raise UserError("--devices: needs Lightning Fabric; pip install lightning-fabric.") from error
    there = torch.accelerator.device_count() if device.type != "cpu" else count
    if count > there:
        raise UserError(f"--devices {count}: there are {there} of {device.type} on this machine.")
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    try:
        fabric = Fabric(accelerator=device.type, devices=count, num_nodes=nodes, strategy="ddp")
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"--devices {count}: {error}") from error
    if not is_first():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one says when to stop
    return fabric.device


@contextmanager
def together() -> Iterator[None]:
    """Inside, a process that finds the others gone says so in a sentence. Raises RunError."""
    try:
        yield
    except RuntimeError as error:  # dist.DistError, or what gloo and NCCL make of a closed connection
        if world() == 1 or not LOST.search(str(error)):
            raise
        raise RunError(
            f"one of the {world()} processes has ended, and this one with it: what it said stands above. zaq quantize "
            "--resume goes on from the last snapshot, with any number of processes."
        ) from error


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes: rank 0, or the only one."""
    return world() == 1 or dist.get_rank() == 0


@contextmanager
def sharing(count: int) -> Iterator[slice | None]:
    """Inside, a network runs this process's rows of a batch, which are handed out; None where it cannot be shared out
    evenly: then each runs all of it."""
    global _shared
    before, mine = _shared, None
    if world() > 1 and count % world() == 0:
        each = count // world()
        mine = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)
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


def sent(value: T) -> T:
    """What the first process has, in all of them: what is decided by it is then decided alike."""
    if world() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    found: T = box[0]
    return found
