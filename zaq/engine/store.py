"""Where a run keeps what grows with its images: in memory as far as `--memory` goes, beyond that in files.

A file is mapped into memory, so that a tensor in it is a tensor like any other, and has no name, so that the system
removes it with the process, however that ends. What is in a file is the same to the bit as what would be in memory, so
no result depends on the amount.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zaq.compute.devices import CPU
from zaq.errors import RunError

__all__ = ["Store", "in_parts", "rest"]

SMALL = 2**28  # bytes of a tensor that stays on its device; a handful of them is there at a time
_FILES: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def rest() -> None:
    """Let go of the pages of files that were read or written: they stay in the system's cache as long as it has room,
    and are no part of this process any more."""
    for mapped in _FILES if hasattr(mmap, "MADV_DONTNEED") else ():
        mapped.madvise(mmap.MADV_DONTNEED)


def in_parts(x: Tensor, rows: int) -> Iterator[Tensor]:
    """A tensor so many rows at a time, each let go of when the next is asked for."""
    for part in x.split(rows):
        yield part
        rest()


class Store:
    """Keeps tensors of `memory` bytes in memory, and those that come when it is full in files in `folder` (None: where
    temporary files go). Small ones that come from another device stay there: who takes a batch moves it."""

    def __init__(self, memory: int, folder: Path | None = None) -> None:
        self.memory, self.folder, self.held = memory, folder, 0

    def gather(self, parts: Iterable[Tensor], count: int) -> Tensor:
        """`count` rows that come in parts, (n, ...) each, as one tensor: torch.cat of what need not be there at once.
        Raises RunError where the disk has no room."""
        return self.gather_each(([part] for part in parts), count)[0]

    def gather_each(self, parts: Iterable[Sequence[Tensor]], count: int) -> list[Tensor]:
        """The same of several tensors, whose parts come together."""
        made: list[Tensor] = []
        at = 0
        for part in parts:
            made = made or [self._like(x, count) for x in part]
            for whole, x in zip(made, part, strict=True):
                whole[at : at + len(x)] = x[: count - at]
            at += len(part[0])
            rest()
        assert at >= count, f"{at} rows came, not {count}"
        return made

    def _like(self, part: Tensor, count: int) -> Tensor:
        """An empty tensor of `count` rows like those of a part, its values in the same order."""
        shape = (count, *part.shape[1:])
        strides = (part[0].numel(), *torch.empty_like(part[0]).stride())
        size = count * part[0].numel() * part.element_size()
        if not size or (part.device != CPU and size <= SMALL):
            return part.new_empty(shape) if not size else part.new_empty_strided(shape, strides)
        if self.held + size <= self.memory:
            memory = mmap.mmap(-1, size)
            self.held += size
            weakref.finalize(memory, self._drop, size)
        else:
            memory = self._file(size)
            _FILES.add(memory)
        return torch.frombuffer(memory, dtype=part.dtype).as_strided(shape, strides)

    def _drop(self, size: int) -> None:
        self.held -= size

    def _file(self, size: int) -> mmap.mmap:
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                if hasattr(os, "posix_fallocate"):  # a full disk is an error now; later it is a signal
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                return mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise RunError(
                f"{self.folder or tempfile.gettempdir()}: no room for a file of {size / 2**20:.0f} MiB of features "
                f"({error.strerror or error}); free some, allow more with --memory, or choose another folder with "
                f"{'-o' if self.folder else 'TMPDIR'}."
            ) from error
