"""What `on_second_device.py` tries, in processes that have the device from their first gradient on."""

import subprocess
import sys
from pathlib import Path

import pytest

TRIED = Path(__file__).with_name("on_second_device.py")


@pytest.mark.parametrize("which", ["a_method", "not a_method"])
def test_a_second_device(which: str, shared: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(TRIED), "-k", which]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TRIED.parents[2], timeout=900)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-4000:]
