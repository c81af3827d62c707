"""Disks that are full, read-only or gone, on file systems of their own: a sentence, and nothing lost that was there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import QUICK, zaq_here
from test_resume import begun, wait_for
from zoo import CARD, quantized_net

from zaq.methods import Flagship
from zaq.run import write_file

LONG = (*QUICK, "-s", "polish=100000")
OURS = Flagship(synthesis=2, refine=1, images=64, reconstruct=1, polish=0, game=0)

Disk = Callable[..., Path]


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    assert zaq_here("quantize", model, *QUICK, "-o", out).exit_code == 0
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of so many KB."""
    made: list[Path] = []

    def of(size: int, *options: str) -> Path:
        path = tmp_path / f"disk{len(made)}"
        path.mkdir()
        chosen = ",".join([f"size={size}k", *options])
        command = ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", str(path)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root, and a kernel that lets it")
        made.append(path)
        return path

    yield of
    for path in made:
        subprocess.run(["umount", "-l", path], check=True)


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("size", [4, 40, 200, pytest.param(400, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_a_file_of_a_run(size: int, model: Path, disk: Disk) -> None:
    """Options, checkpoint, samples, report: each is the first without room at one of the sizes, or snapshots are."""
    done = zaq_here("quantize", model, *QUICK, "--snapshot", "0s", "-o", disk(size) / "out")
    assert done.exit_code == 1 and "no space left on the disk" in done.stderr and "Traceback" not in done.output


def test_a_full_disk_costs_no_older_run(run: Path, model: Path, disk: Disk) -> None:
    room = sum(map(len, contents(run).values())) // 1024
    small = disk(room + 300)
    shutil.copytree(run, small / "out")
    before = contents(small / "out")
    done = zaq_here("quantize", model, *QUICK, "--seed", "1", "-o", small / "out", "--overwrite")
    assert done.exit_code == 1 and "no space left" in done.stderr
    assert contents(small / "out") == before


def test_images_that_have_no_room_are_not_kept_and_the_run_goes_on(disk: Disk) -> None:
    path = disk(4) / "images.safetensors"
    made = quantized_net("residual", "w4a4", OURS, card=CARD, keep=lambda content: write_file(path, content))
    assert any("its images are not kept" in note and "no space left" in note for note in made.report["notes"])


def test_no_room_for_an_exported_file(run: Path, disk: Disk) -> None:
    small = disk(4)
    done = zaq_here("export", run, "--format", "packed", "-o", small / "packed.onnx")
    assert done.exit_code == 1 and f"{small}/packed.onnx: no space left" in done.stderr and not contents(small)


@pytest.mark.parametrize("verb", ["verify", "profile"])
def test_no_room_for_temporary_files(verb: str, run: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime says then that the model is broken."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk(4)))
    done = zaq_here(verb, run)
    assert done.exit_code == 1 and "for temporary files" in done.stderr and "cannot load" not in done.stderr


def test_nowhere_for_temporary_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    done = zaq_here("verify", run)
    assert done.exit_code == 1 and "set TMPDIR" in done.stderr


def test_no_room_for_the_tables_of_a_benchmark(cifar: str, disk: Disk) -> None:
    small = disk(16)
    done = zaq_here(
        "benchmark", "zoo:resnet20_cifar10", "--methods", "rtn", "--data", cifar, "--limit", 20, "-o", small / "out"
    )
    assert done.exit_code == 1 and "no space left" in done.stderr, done.output


def test_a_disk_that_is_read_only(run: Path, model: Path, disk: Disk) -> None:
    small = disk(100, "ro")
    for args in (("quantize", model, *QUICK, "-o", small / "out"), ("export", run, "-o", small / "model.onnx")):
        done = zaq_here(*args)
        assert done.exit_code == 2 and "cannot be written (Read-only file system)" in done.stderr


def test_a_folder_that_vanishes(model: Path, tmp_path: Path) -> None:
    process = begun(model, *LONG, "-o", tmp_path / "out")
    work = tmp_path / "out.partial"
    wait_for(lambda: (work / "log.jsonl").is_file() and "polish" in (work / "log.jsonl").read_text())
    shutil.rmtree(work)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2 and f"{work}" in err and "No such file or directory" in err, err
    assert "Traceback" not in err
