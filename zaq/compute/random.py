"""Random numbers: whatever is drawn inside a stage, or for one, is drawn by a seed of its own and disturbs nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zaq.compute.devices import CPU

__all__ = ["drawing", "random_state", "set_random_state", "set_seed"]


@contextmanager
def drawing(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Inside, torch's random numbers are those of a seed; afterwards they go on as if nothing had been drawn.

    Whatever zaq draws, it draws on the CPU and moves, so that a seed draws the same on every device. A method of a
    user's own may draw on the device: its numbers are the seed's, too.
    """
    others = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(others, device_type=device.type if others else None):
        set_seed(seed, device)
        yield


def set_seed(seed: int, device: torch.device) -> None:
    """Begin random numbers anew."""
    # torch.manual_seed would seed every device that there is
    (torch.manual_seed if device.type != "cpu" else torch.default_generator.manual_seed)(seed % 2**63)


def random_state(device: torch.device) -> list[Tensor]:
    """Where the random numbers are: of the CPU, and of a device beside it."""
    other = [] if device.type == "cpu" else [torch.get_device_module(device.type).get_rng_state(device.index or 0)]
    return [torch.get_rng_state(), *other]


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Go on where `random_state` was asked; one of another device says where the CPU was, by which zaq draws."""
    torch.set_rng_state(state[0].cpu())
    if device.type != "cpu" and len(state) > 1:
        torch.get_device_module(device.type).set_rng_state(state[1].cpu(), device.index or 0)
