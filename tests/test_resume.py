"""Runs that are broken off: what is left, what it says, and that `--resume` ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import begun, wait_for, zaq, zaq_here

QUICK = (
    "--effort",
    "fast",
    "-s",
    "synthesis=4",
    "-s",
    "refine=2",
    "-s",
    "images=64",
    "-s",
    "reconstruct=2",
    "-s",
    "polish=60",
)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run that nothing broke off."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert zaq("quantize", model, *QUICK, "-o", folder).returncode == 0
    return (folder / "model.onnx").read_bytes()


def logged(folder: Path, text: str) -> Callable[[], bool]:
    path = folder.with_name(f"{folder.name}.partial") / "log.jsonl"
    return lambda: path.is_file() and text in path.read_text()


def test_a_killed_run_goes_on_and_ends_with_the_same_file(model: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begun(model, *QUICK, "-o", out, "--snapshot", "0s")
    wait_for(logged(out, '"polish", "step": 20'))
    process.kill()
    process.communicate()
    assert not out.exists() and list((tmp_path / "out.partial" / "snapshots").iterdir())

    repeated = zaq_here("quantize", model, *QUICK, "-o", out)
    assert repeated.exit_code == 2 and f"--resume {out} goes on with it" in repeated.stderr
    for args, named in (
        ((model, "--bits", "w3a3"), "--bits w4a4, not w3a3"),
        (("--seed", "1"), "--seed 0, not 1"),
        (("--method", "zaq"), "--method flagship, not zaq"),
        (("zoo:resnet20_cifar10",), "was begun with SOURCE"),
    ):
        other = zaq_here("quantize", *args, "--resume", out)
        assert other.exit_code == 2 and named in other.stderr, other.stderr

    done = zaq("quantize", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert (out / "model.onnx").read_bytes() == whole
    assert not (tmp_path / "out.partial").exists() and not (out / "snapshots").exists()
    report = json.loads((out / "report.json").read_text())
    assert any("went on from a snapshot at polish" in note for note in report["notes"])
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if row["stage"] == "polish" and "loss_q" in row] == list(range(60))


@pytest.mark.parametrize(
    "name",
    [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)],
)
def test_a_run_that_is_asked_to_end_is_whole_and_can_go_on(
    name: str, model: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = begun(model, *QUICK, "-o", out)
    wait_for(logged(out, '"reconstruct"'))
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and f"zaq quantize --resume {out} goes on" in err and "Traceback" not in err
    assert "stopping, keeping what is finished; again to quit" in err
    assert json.loads((out / "report.json").read_text())["interrupted"]
    assert zaq_here("verify", out).exit_code == 0
    if name == "SIGTERM":  # once is enough
        done = zaq_here("quantize", "--resume", out)
        assert done.exit_code == 0, done.output
        assert (out / "model.onnx").read_bytes() == whole and not (out / "snapshots").exists()
        assert not json.loads((out / "report.json").read_text())["interrupted"]


@pytest.mark.slow
def test_ctrl_c_while_files_are_written_waits_for_them(model: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begun(model, *QUICK, "-o", out)
    wait_for((tmp_path / "out.partial" / "options.json").is_file)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and f"the run in {out}/ is whole" in err, err
    assert (out / "model.onnx").read_bytes() == whole and (out / "report.html").is_file()


def test_an_older_run_stays_until_the_new_one_is_whole(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_text("the older one")
    (out / "model.packed.onnx").write_text("the older one's")
    (out / "mine.txt").write_text("keep me")
    quick = ("--method", "rtn", "--bits", "w8a8")
    failed = zaq_here("quantize", model, "--method", "ft", "--data", "npz:nowhere", "-o", out, "--overwrite")
    assert failed.exit_code == 2 and (out / "model.onnx").read_text() == "the older one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert zaq_here("quantize", model, *quick, "-o", out, "--overwrite").exit_code == 0
    assert (out / "mine.txt").read_text() == "keep me" and not (out / "model.packed.onnx").exists()
    assert zaq_here("verify", out).exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_two_runs_into_one_folder(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begun(model, *QUICK, "-s", "polish=100000", "-o", out)
    try:
        wait_for(logged(out, '"synthesis"'))
        done = zaq_here("quantize", model, *QUICK, "-o", out, "--overwrite")
        assert done.exit_code == 2 and "another process is writing this run" in done.stderr
    finally:
        process.kill()
        process.communicate()
    again = zaq_here("quantize", model, "--method", "rtn", "-o", out, "--overwrite")
    assert again.exit_code == 0, again.output


def test_nothing_to_resume(model: Path, tmp_path: Path) -> None:
    done = zaq_here("quantize", model, "--resume", tmp_path / "out")
    assert done.exit_code == 2 and "there is no snapshot to go on from" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_has_no_code_run_that_the_command_line_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "factories.py").write_text("from zoo import build\n\ndef net():\n    return build('residual')\n")
    args = ("factories:net", "--input-shape", "3,16,16", *QUICK, "-s", "polish=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "zaq", "quantize", *args, "-o", "out", "--snapshot", "0s"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(logged(tmp_path / "out", '"polish"'))
    finally:
        process.kill()
        process.wait()
    done = zaq_here("quantize", "--resume", "out")
    assert done.exit_code == 2 and "SOURCE factories:net, which is code" in done.stderr
    other = zaq_here("quantize", "factories:net", "--bits", "w8a8", "--resume", "out")  # asked again, and let through
    assert other.exit_code == 2 and "--bits w4a4, not w8a8" in other.stderr


def test_a_checkpoint_and_its_options_are_enough_for_a_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert zaq_here("quantize", model, "--method", "rtn", "-o", out).exit_code == 0
    whole = (out / "model.onnx").read_bytes()
    for name in ("model.onnx", "report.json", "report.html", "log.jsonl"):
        (out / name).unlink(missing_ok=True)
    assert zaq_here("export", out).exit_code == 0
    assert (out / "model.onnx").read_bytes() == whole


def test_a_save_that_fails_costs_seconds(
    model: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(torch.export, "save", fails)
        assert zaq_here("quantize", model, *QUICK, "-o", out).exit_code != 0
    assert not out.exists()
    trained = len((tmp_path / "out.partial" / "log.jsonl").read_text().splitlines())
    assert zaq_here("quantize", "--resume", out).exit_code == 0
    assert (out / "model.onnx").read_bytes() == whole
    assert len((out / "log.jsonl").read_text().splitlines()) == trained  # nothing was trained again
