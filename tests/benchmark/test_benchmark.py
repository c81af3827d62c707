"""`zaq benchmark` as a user types it: once for real, killed on its way; the rest with a stand-in for what it runs."""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import zaq, zaq_here
from test_runner import MEASURED, stand_in, wait_for

from zaq.benchmark import cells as running
from zaq.benchmark import measure, page
from zaq.benchmark.measure import Meter

LOAD = functools.cache(measure.load)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar")
    raw = np.random.default_rng(0).integers(0, 256, (60, 3073)).astype(np.uint8)
    raw[:, 0] %= 10
    raw.tofile(folder / "test_batch.bin")
    return folder


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls in this process share a model, a second each."""
    monkeypatch.setattr(measure, "load", LOAD)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cells are run by a stand-in and measured by nothing, the page holds no plots."""
    monkeypatch.setattr(running, "ZAQ", (sys.executable, "-c", stand_in(tmp_path / "out")))
    monkeypatch.setattr(page, "render", lambda rows, about: str(about))
    monkeypatch.setattr(Meter, "__call__", lambda self, cell, run: MEASURED)


def call(*args: object) -> Result:
    """In this process, as importing torch takes longer than all the rest."""
    return zaq_here("benchmark", *args)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow  # test_runner.py kills processes, too, of a stand-in for zaq
def test_killed_and_gone_on_for_real(data: Path, tmp_path: Path) -> None:
    out, args = (
        tmp_path / "out",
        ["benchmark", "zoo:resnet20_cifar10", "--data", f"cifar10:{data}", "--limit", 50, "--effort", "fast"],
    )
    args += ["--methods", "zaq[warm_up=2,rounds=1]", "-o", out]
    first = subprocess.Popen([sys.executable, "-m", "zaq", *map(str, args)])
    wait_for(lambda: list(out.glob("cells/*/stderr.txt")))  # the cell is under way
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not list(out.glob("cells/*/result.json"))

    done = zaq(*args)
    assert done.returncode == 0 and not done.stderr, done
    assert "1 of 1 cells finished" in done.stdout and "(float " in done.stdout
    (row,) = table(out)
    assert row["model"] == "resnet20_cifar10" and row["bits"] == "w4a4" and row["images"] == "50" and not row["error"]
    assert 0 < float(row["onnx_top1"]) < 40 and 0 < float(row["float_top1"]) < 40  # random labels
    assert float(row["agreement"]) > 30 and 250 < float(row["file_kb"]) < 350 and 200 < float(row["peak_mb"]) < 4000
    assert abs(float(row["onnx_top1"]) - float(row["fake_quant_top1"])) < 10
    assert [p.name for p in out.glob("cells/*/run/*")] == ["report.json"]
    assert json.loads(next(out.glob("cells/*/run/report.json")).read_text())["options"]["seed"] == 0
    page = (out / "index.html").read_text()
    assert page.count("data:image/png") == 2 and "zaq[warm_up=2,rounds=1]" in page and "first 50" in page

    again = call(*args[1:])
    assert again.exit_code == 0 and "float" not in again.output and "1 of 1 cells finished" in again.output


@pytest.mark.usefixtures("quick")
def test_shards_on_machines_of_their_own_are_collected(data: Path, tmp_path: Path) -> None:
    flags = ("zoo:resnet20_cifar10", "--data", f"cifar10:{data}", "--bits", "w8a8,w4a4", "--seeds", 2)
    together = tmp_path / "together"
    for shard in ("0/3", "1/3", "2/3"):
        out = tmp_path / shard.replace("/", "of")
        done = call(*flags, "--shard", shard, "-o", out)
        assert done.exit_code == 0, done.output
        shutil.copytree(out / "cells", together / "cells", dirs_exist_ok=True)
    done = call("--collect", "-o", together)
    assert done.exit_code == 0 and "4 finished cells" in done.output
    assert len({(r["bits"], r["seed"]) for r in table(together)}) == 4
    assert (together / "results.md").read_text().count("88.00 ± 0.00 (2)") == 2


@pytest.mark.usefixtures("quick")
def test_a_plan(data: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        f"data: cifar10:{os.path.relpath(data, tmp_path)}\nruns: [{{models: 'zoo:resnet20_cifar10'}}]\n"
    )
    done = call(tmp_path / "plan.yaml", "-o", tmp_path / "out")
    assert done.exit_code == 0 and "1 of 1 cells" in done.output
    assert "runs: [{models:" in (tmp_path / "out" / "index.html").read_text()


def test_a_dry_run_lists_the_cells_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    done = call("zoo:resnet20_cifar10", "--data", f"cifar10:{data}", "--seeds", 3, "--dry-run", "-o", tmp_path / "out")
    assert (
        done.exit_code == 0
        and done.output.count("resnet20_cifar10-zaq-w4a4-integer-s") == 3
        and "3 cells" in done.output
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("args", "message"), [
    (["no/model.pt2", "--data", "cifar10:DATA"], "there is no such file"),
    (["--data", "cifar10:DATA"], "models missing"),
    (["zoo:resnet20_cifar10"], "data missing"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:/nowhere"], "/nowhere does not exist"),
    (["zoo:resnet20_cifar10", "--data", "cifra10:DATA"], "Did you mean 'cifar10'?"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:DATA", "--methods", "zqa"], "Did you mean 'zaq'?"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:DATA", "--methods", "zaq[alhpa=1]"], "Did you mean 'alpha'?"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:DATA", "--bits", "w9a9"], "2 to 8 are supported"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:DATA", "--shard", "5/4"], "I/N is expected"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:DATA", "-o", "FILE"], "is a file; -o names a folder"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:DATA", "--timeout", "nan"], "no finite number"),
    (["zoo:resnet20_cifar10", "--data", "cifar10:DATA", "--timeout", "1e9"], "is not in the range"),
    (["no/plan.yaml"], "there is no such file"),
    (["PLAN", "--bits", "w4a4"], "--bits beside it cannot"),
    (["--collect"], "is no folder of zaq benchmark"),
])  # fmt: skip
def test_mistakes_are_sentences_and_write_nothing(args: list[str], message: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = Path(__file__).parents[2] / "benchmarks" / "comparison.yaml"
    words = [a.replace("DATA", str(data)).replace("FILE", str(tmp_path / "file")) for a in args]
    words = [str(plan) if word == "PLAN" else word for word in words]
    done = call(*([] if "-o" in words else ["-o", tmp_path / "out"]), *words)
    assert done.exit_code == 2 and message in done.output and "Traceback" not in done.output, done.output
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
