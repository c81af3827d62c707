"""How much memory a run may keep, and how it hands back what it no longer needs.

A run's memory is that of torch and the network, of one batch's work, and of what it keeps from batch to batch: images
and features. Only the last grows with the number of images, and only for it `--memory` is asked (`engine.store`).
"""

import ctypes
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from zaq.errors import BitsError

__all__ = ["allowed", "at_once", "free", "hand_back", "in_bytes"]

CGROUPS = Path("/sys/fs/cgroup")
LIMITS = {  # by controller: files of the limit and of what is taken, and what of that is files read
    "": ("memory.max", "memory.current", "inactive_file"),  # version 2
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def in_bytes(text: str, flag: str, example: str) -> int:
    """`0.3MB`, `2G` or a number of bytes; K, M, G and T count in 1024. Raises BitsError for anything else."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d*)?|\.\d+)\s*([KMGT]?)I?B?", text.strip().upper())
    if not match:
        raise BitsError(f"{flag} {text}: a size is expected, as {example}.")
    return int(float(match[1]) * UNITS[match[2]])


def allowed(memory: int | str | None = None) -> int:
    """Bytes that a run may keep: those said, as a number or as `2G`, or half of what is free now.

    Raises BitsError for what is no size.
    """
    if memory is None:
        return free() // 2
    return in_bytes(str(memory), "--memory", "2G or 500M")


def free() -> int:
    """Bytes that can be had now: on this machine, or inside the limits of the control groups that this process is in,
    where these are nearer."""
    return max(min([psutil.virtual_memory().available, *_left()]), 0)


def _left() -> Iterator[int]:
    """What the control group of this process, and each one above it, may still take where it has a limit. What it has
    read of files counts as its own, and goes when the room is needed."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in LIMITS:
            continue
        limit, used, cached = LIMITS[controllers]
        own = CGROUPS / controllers / path.lstrip("/")
        for folder in (own, *own.parents):
            try:
                stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                taken = int((folder / used).read_text()) - int(stat[cached])
                yield int((folder / limit).read_text()) - taken
            except (OSError, ValueError, KeyError):  # no control group, or its limit is "max"
                continue


def at_once(values: int, sample: Iterable[int]) -> int:
    """How many samples of a shape have so many values together; one at least."""
    return max(values // math.prod(sample), 1)


def hand_back() -> None:
    """Hand free memory back to the system. The C library keeps what a stage had at once for the next one, which may
    need it in other pieces; asked for at the end of a stage this costs milliseconds."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's alone
        libc.malloc_trim(0)
