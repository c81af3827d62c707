"""Several processes follow one: stage by stage with the same losses, by the command line, and to an end if one dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import QUICK, begun, wait_for, zaq
from toy import CARD, trained

from zaq.compute.devices import CPU
from zaq.compute.processes import launch
from zaq.config.bits import QConfig
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stage, run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import UserError
from zaq.ir.capture import trace
from zaq.methods import METHODS
from zaq.passes.fold import fold


def constants(steps: int) -> dict[str, dict[str, Any]]:
    """So many steps for every stage of each method, or what comes near."""
    few = max(steps // 8, 1)
    return {
        "flagship": {
            "synthesis": steps, "refine": steps // 2, "images": 64, "reconstruct": steps // 3, "polish": steps,
            "game": few,
        },
        "zaq": {"warm_up": steps, "rounds": few, "width": 8},
        "zeroq": {"steps": steps},
        "gdfq": {"epochs": 2 * steps, "iterations": 1, "warm_up": 0.5, "width": 8, "batch": 16},
        "deepinversion": {"steps": steps, "images": 16, "finetune": steps},
    }  # fmt: skip


def compare(rank: int, name: str, steps: int, folder: str) -> None:
    """In one of two processes: every stage of a method alone, then from the same state together; its losses."""
    torch.set_num_threads(1)
    task = Task(fold(trace(trained(), torch.zeros(1, 3, 16, 16)))[0], QConfig.parse("w4a4"), CARD, "fast")
    stages = METHODS[name](**constants(steps)[name]).stages(task)
    state, rows, begun = State(task), dict[int, Any](), list[Any]()
    for number, stage in enumerate(stages):
        begun.append((state.task, state.save() if state.optimizer is None else None))
        journal = Journal()
        run_stage(stage, state, journal)
        rows[number] = journal.log.rows
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=300), 2, rank)
    found = []
    for number, stage in enumerate(stages):
        last = max(i for i in range(number + 1) if begun[i][1] is not None)  # an optimizer is in no state of the toy's
        state = State(begun[last][0])
        state.load(begun[last][1])
        for i in range(last, number + 1):
            journal = Journal()
            run_stage(stages[i], state, journal)
        found.append((stage.name, rows[number], journal.log.rows))
    try:
        run_stages([], State(Task(task.teacher, task.qconfig, CARD, batch=9)), Journal())
    except UserError as error:
        found.append(("odd", str(error), []))
    dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("name", "steps"), [("flagship", 8), *(pytest.param(n, 50, marks=pytest.mark.slow) for n in constants(50))]
)
def test_two_processes_have_the_losses_of_one(name: str, steps: int, tmp_path: Path) -> None:
    mp.spawn(compare, (name, steps, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second  # both know the whole batch
    *stages, (odd, said, _) = first
    assert odd == "odd" and said.startswith("--devices: a batch of this network has 9 images, which 2 processes")
    done = 0
    for stage, alone, together in stages:
        assert len(alone) == len(together), stage
        done += len(alone)
        for key in [k for k in (alone or [{}])[0] if k not in ("stage", "step")]:
            ours, theirs = (torch.tensor([row.get(key, 0.0) for row in rows]) for rows in (alone, together))
            if stage not in ("gdfq", "zaq"):  # the first begins where its warm-up ended, and a game's step is of many
                assert theirs[0] == pytest.approx(float(ours[0]), rel=1e-4), (stage, key)
            # Rounding makes much of the last bits of floats: in the end two runs differ as those of two seeds do not.
            assert float(theirs.mean()) == pytest.approx(float(ours.mean()), rel=0.1 if name == "gdfq" else 0.05), (
                stage,
                key,
            )
    assert done >= steps


@pytest.mark.slow
def test_the_command_line_runs_two(model: Path, tmp_path: Path) -> None:
    """The first alone writes and speaks."""
    run = tmp_path / "run"
    done = zaq("quantize", model, *QUICK, "--devices", "2", "-o", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model.onnx, and report.html") == 1
    plain = zaq("quantize", model, *QUICK, "-o", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    ours, theirs = (json.loads((f / "report.json").read_text()) for f in (run, tmp_path / "plain"))
    for a, b in zip(ours["stages"], theirs["stages"], strict=True):
        assert a["name"] == b["name"] and a["loss_after"] == (b["loss_after"] and pytest.approx(b["loss_after"], 0.1))


def saved_in(process: "subprocess.Popen[str]", folder: Path) -> Callable[[], bool]:
    """Whether the process, which has to be at work still, has left a snapshot of its run."""

    def there() -> bool:
        assert process.poll() is None
        return any((folder / "run.partial" / "snapshots").glob("*"))

    return there


def test_one_that_dies_ends_all_and_the_run_goes_on(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = begun(model, *QUICK, "-s", "polish=100", "--snapshot", "1s", "-o", run, "--devices", "2")
    try:
        wait_for(saved_in(process, tmp_path))
        (child,) = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(child), signal.SIGKILL)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert "one of the 2 processes has ended, and this one with it" in said
    gone_on = zaq("quantize", "--resume", run, "--devices", "1")
    assert gone_on.returncode == 0, gone_on.stderr
    assert "went on from a snapshot" in gone_on.stdout


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(UserError, match="pip install lightning-fabric"):
        launch(CPU, 2)


@pytest.mark.slow
def test_ctrl_c_stops_all_between_two_steps(model: Path, tmp_path: Path) -> None:
    call = [*QUICK, "-s", "polish=100000", "--snapshot", "1s", "-o", tmp_path / "run", "--devices", "2"]
    process = begun(model, *call, alone=True)
    try:
        wait_for(saved_in(process, tmp_path))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, why = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and "interrupted; what was finished is in" in why
    assert said.count("model.onnx, and report.html") == 1
