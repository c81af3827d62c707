"""How much a run may keep: sizes as they are written, what is free, and the limits of control groups."""

from pathlib import Path

import psutil
import pytest

from zaq.config import memory
from zaq.config.memory import allowed, at_once, free, in_bytes
from zaq.errors import BitsError


@pytest.mark.parametrize(
    ("text", "size"),
    [("2G", 2**31), ("500M", 500 * 2**20), ("0.5 GiB", 2**29), (".5kb", 512), ("1T", 2**40), ("12", 12), ("0", 0)],
)
def test_sizes(text: str, size: int) -> None:
    assert in_bytes(text, "--memory", "2G") == allowed(text) == size


@pytest.mark.parametrize("text", ["", "G", "2X", "-1", "3 apples", "1e9", "nan", "1.2.3M", "9" * 30])
def test_nonsense_is_told(text: str) -> None:
    with pytest.raises(BitsError, match=r"--memory .*: a size is expected, as 2G or 500M\."):
        allowed(text)


def test_half_of_what_is_free() -> None:
    assert 0 < free() <= psutil.virtual_memory().total
    assert allowed() == pytest.approx(free() / 2, rel=0.5)


@pytest.mark.parametrize(("controllers", "names"), memory.LIMITS.items())
def test_a_limit_above_counts_without_what_is_files_read(
    controllers: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    if not any(line.split(":")[1] == controllers for line in lines):
        pytest.skip("this machine has no control groups of that version")
    (group := tmp_path / controllers).mkdir(exist_ok=True)
    limit, used, cached = names
    (group / used).write_text("900\n")
    (group / "memory.stat").write_text(f"file 800\n{cached} 700\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    (group / limit).write_text("1000\n")
    assert free() == 800
    (group / limit).write_text("100\n")
    assert free() == 0
    (group / limit).write_text("max\n")
    assert free() > 2**20


def test_at_once() -> None:
    assert [at_once(100, shape) for shape in ((3, 4), (50,), (100,), (1000, 2))] == [8, 2, 1, 1]
