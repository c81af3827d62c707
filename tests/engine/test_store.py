"""What is kept is the same in memory and in files, counts while it is there, and leaves nothing behind."""

import gc
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from zaq.engine.store import Store, in_parts, rest

LAYOUTS = {
    "contiguous": torch.randn(10, 3, 4, 5),
    "channels_last": torch.randn(10, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "rows": torch.randn(10, 7),
    "numbers": torch.arange(10),
    "nothing": torch.randn(10, 0, 2),
}


def in_files(x: Tensor, rows: int, folder: Path) -> Tensor:
    return Store(0, folder).gather(x.split(rows), len(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory", [0, 10**9])
def test_what_is_kept_is_what_came(layout: str, memory: int, tmp_path: Path) -> None:
    x = LAYOUTS[layout]
    found = Store(memory, tmp_path).gather(x.split(4), 9)  # the last part has more than are wanted
    assert torch.equal(found, x[:9]) and found.dtype == x.dtype
    assert found.stride() == x[:9].stride() or layout == "nothing"
    found += 1  # it can be written, as what torch.cat makes
    assert torch.equal(found, x[:9] + 1) and not list(tmp_path.iterdir())


def test_memory_counts_while_it_is_held_and_the_rest_goes_to_files(tmp_path: Path) -> None:
    store, x = Store(1000, tmp_path), torch.randn(10, 20)  # 800 bytes
    first = store.gather([x], 10)
    second = store.gather([x], 10)
    assert store.held == 800 and torch.equal(first, second)
    view = first[3:]
    del first
    assert store.held == 800 and torch.equal(view, x[3:])
    del view
    gc.collect()
    assert store.held == 0
    a, b = store.gather_each(([part, 2 * part] for part in x.split(3)), 10)
    assert store.held == 800 and torch.equal(b, 2 * a) and torch.equal(a, x)


def test_what_lies_in_a_file_leaves_the_process_and_comes_back(tmp_path: Path) -> None:
    def resident() -> float:
        return float(psutil.Process().memory_info().rss / 2**20)

    part, before = torch.randn(1, 2**20), resident()  # 4 MiB
    found = Store(0, tmp_path).gather((part for _ in range(64)), 64)
    assert resident() - before < 64
    assert all(torch.equal(row, part) for row in in_parts(found, 1)) and resident() - before < 64
    assert float(found.sum()) and resident() - before > 200  # it would be there, were it not let go of
    rest()
    assert resident() - before < 64 and torch.equal(found[63:], part)
