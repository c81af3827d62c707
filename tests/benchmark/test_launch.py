"""The launcher: what it says of a command, and that no command outlives whoever asked for it."""

import json
import subprocess
import sys
import time

import pytest

from zaq.benchmark.cells import LAUNCH


def launched(*command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-I", str(LAUNCH), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ended(process: "subprocess.Popen[str]") -> dict[str, float]:
    assert process.stdout
    found = json.loads(process.stdout.read())
    process.communicate(timeout=30)
    return dict(found)


def test_memory_is_the_command_s_own() -> None:
    """300 MB of this test's stay out of it, which they would not if the test were the parent."""
    ballast = bytearray(b"x") * 300_000_000
    small, large = (ended(launched(sys.executable, "-c", f"x = b'x' * {mb}_000_000")) for mb in (1, 200))
    assert len(ballast) and small["code"] == large["code"] == 0
    assert small["peak_mb"] < 100 and 150 < large["peak_mb"] - small["peak_mb"] < 250


@pytest.mark.parametrize(
    ("code", "expected"), [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_how_a_command_ended(code: str, expected: int) -> None:
    assert ended(launched(sys.executable, "-c", code))["code"] == expected


def test_the_command_dies_when_our_end_closes() -> None:
    process = launched(sys.executable, "-c", "import time; time.sleep(60)")
    assert process.stdin
    time.sleep(0.3)
    process.stdin.close()
    process.stdin = None
    found = ended(process)
    assert found["code"] == -9 and found["seconds"] < 20


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_what_a_queue_sends_to_all_of_a_job_is_not_for_the_command(name: str) -> None:
    code = f"import os, signal; os.kill(os.getpid(), signal.{name}); os.kill(os.getppid(), signal.{name})"
    assert ended(launched(sys.executable, "-c", code))["code"] == 0
