"""Cells as jobs of submitit's local executor: processes of this machine that time out, die and are followed by others
as SLURM's do.
"""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import zaq_here
from test_runner import CELLS, MEASURED, ran, stand_in, wait_for

from zaq.benchmark import cells as running
from zaq.benchmark import page
from zaq.benchmark.cells import CellJob, Folder
from zaq.benchmark.cluster import TRIES, Cluster
from zaq.benchmark.plan import Cell
from zaq.benchmark.runner import run_cells
from zaq.errors import Interrupted, RunError, UserError

cloudpickle = pytest.importorskip("cloudpickle")
pytest.importorskip("submitit")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """Whose jobs are given what this file defines, which they could not import."""
    monkeypatch.setattr(page, "render", lambda rows, about: f"{len(rows)}")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield Folder.create(tmp_path / "out")
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def measured(cell: Cell, run: Path) -> dict[str, Any]:
    return MEASURED


@dataclass(frozen=True)
class StandIn(CellJob):
    """CellJob with a stand-in for `zaq quantize`, and for measuring, in whichever process it is done."""

    code: str = ""

    def __call__(self, cell: Cell) -> dict[str, Any] | None:
        running.ZAQ = (sys.executable, "-c", self.code)
        return CellJob(self.folder, measured, self.failed_before)(cell)


@dataclass(frozen=True)
class Opened(CellJob):
    """CellJob that calls something as soon as a job opens it, before anything is imported."""

    call: tuple[Callable[..., object], tuple[Any, ...]] = (int, ())

    def __reduce__(self) -> Any:
        return self.call


def rows_of(work: CellJob, said: list[str]) -> list[dict[str, Any]]:
    return list(Cluster.parse(("cluster=local", "timeout_min=9")).rows(work, CELLS[:1], said.append))


def workers(folder: Path, module: str = "_submit") -> list[int]:
    """The processes of submitit in which cells are run (`_local`: that watch these), found as from outside."""
    found = subprocess.run(["ps", "-axwwo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if f"{module} {folder / 'jobs'}" in line]


def when(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        wait_for(condition, 240)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGKILL"])
def test_a_job_that_ends_in_mid_cell_goes_on_from_its_snapshots(name: str, folder: Folder) -> None:
    """SIGUSR2 is what a queue sends where the time is up, which submitit holds of all of less than ten minutes: the job
    itself is queued again. A killed one has another.
    """
    snapshots = folder / "cells" / CELLS[0].id / "run.partial" / "snapshots"
    sleeping = f"""if "--resume" not in sys.argv:
    saved = pathlib.Path({str(snapshots)!r})
    saved.mkdir(parents=True)
    (saved / "one").write_text("")
    time.sleep(240)
"""
    code = stand_in(folder.path).replace("time.sleep(0)\n", sleeping).replace('"x")\n', "'{\"minutes\": 7}')\n")
    kill = when(lambda: list(snapshots.glob("*")), lambda: os.kill(workers(folder.path)[0], getattr(signal, name)))
    said: list[str] = []
    (row,) = rows_of(StandIn(folder, measured, code=code), said)
    kill.join()
    assert not row["error"] and row["minutes"] == 7 and row["onnx_top1"] == 88 and ran(folder.path) == ["0", "0"]
    jobs = [path.name.split("_")[0] for path in folder.path.glob("jobs/*/*_submitted.pkl")]
    logs = "".join(path.read_text() for path in folder.path.glob("jobs/*/*.out"))
    if name == "SIGUSR2":
        assert len(jobs) == 1 and not said and f"Requeued job {jobs[0]} (2 remaining timeouts)" in logs
    else:
        assert len(jobs) == 2 and len(said) == 1 and "another one goes on with it" in said[0]


def test_a_grid(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user types it, two at once; a cell that fails does so as it would here."""
    code = stand_in(folder.path, fail=("1",))
    monkeypatch.setattr("zaq.benchmark.runner.CellJob", functools.partial(StandIn, code=code))
    np.zeros((10, 3073), np.uint8).tofile(tmp_path / "test_batch.bin")
    args = ["benchmark", "zoo:resnet20_cifar10", "--data", f"cifar10:{tmp_path}", "--seeds", 2, "-o", folder.path]
    done = zaq_here(*args, "--slurm", "cluster=local", "--slurm", "array_parallelism=2", "--slurm", "partition=gpu")
    assert done.exit_code == 0 and "2 of 2 cells finished, 1 failed" in done.output, done.output
    assert "seed 1: failed: exit code 1: zaq: seed 1 is unlucky" in done.output
    assert sorted(ran(folder.path)) == ["0", "1"] and len(list(folder.path.glob("jobs/*"))) == 1
    assert "88.00 (1), 1 failed" in (folder / "results.md").read_text()
    assert "2 of 2 cells finished" in zaq_here(*args, "--slurm", "cluster=local").output  # nothing is left to submit
    assert len(list(folder.path.glob("jobs/*"))) == 1


@pytest.mark.parametrize(
    ("call", "told", "jobs"),
    [
        ((signal.raise_signal, (signal.SIGKILL,)), f"{TRIES} jobs of it died: it said nothing (", TRIES),
        ((int, ("x",)), "its job failed: ValueError: invalid literal for int() with base 10: 'x' (", 1),
    ],
)
def test_a_cell_that_no_job_brings_to_an_end_is_a_row_that_says_why(
    call: Any, told: str, jobs: int, folder: Folder
) -> None:
    (row,) = rows_of(Opened(folder, measured, call=call), [])
    assert row["error"].startswith(told) and [row] == folder.results(CELLS[:1])
    assert len(list(folder.path.glob("jobs/*/*_submitted.pkl"))) == jobs


def test_a_cell_that_others_hold_is_left_to_them(folder: Folder) -> None:
    with folder.claim(CELLS[0]):
        assert rows_of(Opened(folder, measured, call=(int, ("x",))), []) == []
    assert folder.open_cells(CELLS[:1]) and not folder.rows()


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_ctrl_c_cancels_the_jobs(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zaq.benchmark.runner.CellJob", functools.partial(Opened, call=(time.sleep, (240,))))
    interrupt = when(lambda: workers(folder.path), lambda: os.kill(os.getpid(), signal.SIGINT))
    said: list[str] = []
    with pytest.raises(Interrupted, match="interrupted with 2 of 2 cells open; the same command goes on"):
        run_cells(folder, CELLS[:2], measured, cluster=Cluster.parse(("cluster=local",)), say=said.append)
    interrupt.join()
    wait_for(lambda: not workers(folder.path) and not workers(folder.path, "_local"), 20)
    assert said == ["jobs cancelled: 1"] and (folder / "results.csv").is_file()
    assert not capfd.readouterr().err  # no traces of submitit's processes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["partion=gpu"],
            "--slurm partion=gpu: unknown option 'partion'. Did you mean 'partition'? There is: account,",
        ),
        (["partition"], "Write KEY=VALUE."),
        (["nodes=2"], "unknown option 'nodes'"),
        (["cluster=slrum"], "unknown cluster 'slrum'. Did you mean 'slurm'?"),
        (["timeout_min=1h"], "--slurm timeout_min=1h: a whole number is expected"),
        (["mem_gb=much"], "--slurm mem_gb=much: a number is expected"),
        (["cluster=local", "array_parallelism=0"], "array_parallelism=0: at least 1 is expected"),
        (["setup=module load cuda"], "--slurm: submitit takes no such value"),
    ],
)
def test_options_that_submitit_does_not_take(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_of(tmp_path, monkeypatch)
    with pytest.raises(UserError) as caught:
        Cluster.parse(tuple(options))
    assert told in str(caught.value)


def slurm_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of a SLURM that refuses everything."""
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_jobs_that_the_cluster_refuses(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_of(tmp_path, monkeypatch)
    cluster = Cluster.parse(("partition=gpu", "account=007", "mem_gb=1.5", 'setup=["module load cuda"]'))
    assert cluster.parameters["slurm_account"] == "007" and cluster.parameters["slurm_setup"] == ["module load cuda"]
    with pytest.raises(RunError, match=r"slurm took no jobs .*invalid partition specified: gpu"):
        list(cluster.rows(CellJob(folder, measured), CELLS, print))


def test_without_slurm_or_submitit_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    call = ("benchmark", "zoo:resnet20_cifar10", "--slurm", "partition=gpu", "-o", tmp_path / "out")
    done = zaq_here(*call)
    assert done.exit_code == 2 and "there is no SLURM here (no sbatch and srun on the PATH)" in done.output
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = zaq_here(*call)
    assert done.exit_code == 2 and "pip install '.[slurm]'" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # the same with a stand-in for zaq is above
def test_a_killed_cell_ends_with_the_file_of_one_left_alone(model: Path, tmp_path: Path) -> None:
    out, net = tmp_path / "out", tmp_path / "net.pt2"
    net.write_bytes(model.read_bytes())
    (tmp_path / "net.json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}')
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 16, 16, 3), np.uint8), rng.integers(0, 5, 20)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    settings = {"synthesis": 4, "refine": 2, "images": 64, "reconstruct": 2, "polish": 200}
    saved = lambda: list(out.glob("cells/*/run.partial/snapshots/*"))  # noqa: E731
    kill = when(saved, lambda: os.kill(workers(out)[0], signal.SIGKILL))
    named = ",".join(f"{k}={v}" for k, v in settings.items())
    flags = ("--methods", f"flagship[{named}]", "--effort", "fast", "--keep", "--slurm", "cluster=local", "-o", out)
    done = zaq_here("benchmark", net, "--data", f"npz:{tmp_path / 'data.npz'}", *flags)
    kill.join()
    assert done.exit_code == 0 and "another one goes on" in done.output and "1 of 1 cells finished:" in done.output
    (run,) = out.glob("cells/*/run")
    assert "went on from a snapshot" in (run / "report.json").read_text()
    words = [word for k, v in settings.items() for word in ("-s", f"{k}={v}")]
    alone = zaq_here("quantize", net, "--effort", "fast", *words, "-o", tmp_path / "alone")
    assert alone.exit_code == 0
    assert (run / "model.onnx").read_bytes() == (tmp_path / "alone" / "model.onnx").read_bytes()
