"""The net under the command line: what nobody foresaw is a sentence too, and says what to report."""

import subprocess
import sys

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from zaq.cli import UNFORESEEN, Group, main


def fail(error: Exception, *options: str, env: dict[str, str] | None = None) -> Result:
    """What is said where a verb raises an error."""
    group = Group("zaq", params=main.params)

    @group.command()
    def verb() -> None:
        raise error

    return CliRunner().invoke(group, [*options, "verb"], env=env)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("division by zero"), KeyError("q12"), RecursionError(), OSError(5, "io"), Exception()]
)
def test_what_nobody_foresaw_is_a_line_and_exit_code_70(error: Exception) -> None:
    done = fail(error)
    assert done.exit_code == UNFORESEEN == 70 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("zaq: something that zaq did not foresee")
    assert type(error).__name__ in done.stderr and "--debug" in done.stderr and "torch 2" in done.stderr


def test_debug_shows_the_trace_for_every_error() -> None:
    for options, env in ((("--debug",), None), ((), {"ZAQ_DEBUG": "1"})):
        done = fail(ZeroDivisionError(), *options, env=env)
        assert done.exit_code == UNFORESEEN and "Traceback" in done.stderr and "raise error" in done.stderr
    done = CliRunner().invoke(main, ["--debug", "quantize", "nowhere.pt2"])
    assert done.exit_code == 2 and "Traceback" in done.stderr and "there is no such file" in done.stderr
    assert "Traceback" not in fail(ZeroDivisionError()).stderr


def out_of_memory(how: str) -> Exception:
    """The error that a library has where it is asked for a million terabytes."""
    try:
        torch.empty(2**59) if how == "torch" else np.empty(2**59)
    except Exception as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [
        out_of_memory("torch"), out_of_memory("numpy"), MemoryError(), MemoryError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"), OSError(12, "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_memory_that_is_not_there_is_no_fault_of_zaq(error: Exception) -> None:
    done = fail(error)
    assert done.exit_code == 1 and "there is not enough memory" in done.stderr and "report" not in done.stderr


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "zaq", "inspect", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert not process.stderr.read()
    assert click.ClickException("left to click").exit_code == fail(click.ClickException("left to click")).exit_code
