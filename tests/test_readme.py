"""What the README and the pages of docs/ show works as it stands there, and the pages can be built."""

import configparser
import csv
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import zaq_here
from zoo import SHAPE, build, images, quantized_net, saved

from zaq.cli import main
from zaq.config.card import Card
from zaq.engine.journal import Journal
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.methods import METHODS, Method
from zaq.sources import DEFAULT, SOURCES, is_file
from zaq.stages.calibrate import Calibrate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCKS = re.findall(r"```python\n(.*?)```", "\n".join([README, DOCS["design"]]), re.DOTALL)


def test_a_method_in_ten_lines() -> None:
    (code,) = [b for b in BLOCKS if "class UniformNoise" in b]
    known = (Stage, State, Task, Journal, Method, Calibrate)
    names = {
        "dataclass": dataclasses.dataclass,
        "ClassVar": ClassVar,
        "torch": torch,
        **{kind.__name__: kind for kind in known},
    }
    exec(code, names)
    card = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
    method = names["UniformNoise"](batches=2)  # type: ignore[operator]
    quantized = quantized_net("residual", "w8a8", method, card=card)
    x = images(8)
    with torch.no_grad():
        expected = build("residual")(x)
    assert (quantized.module(x) - expected).pow(2).mean() < 0.05 * expected.var()
    assert quantized.report["options"]["method"] == {"name": "uniformnoise", "batches": 2}


def test_the_python_example(tmp_path: Path) -> None:
    (code,) = [b for b in BLOCKS if "zaq.quantize(" in b]
    code = code.replace(
        "Flagship(game=20)", "Flagship(synthesis=2, refine=1, images=64, reconstruct=1, polish=5, game=1)"
    )
    code = code.replace('"model.onnx"', repr(str(tmp_path / "model.onnx")))
    code = code.replace('"out/"', repr(str(tmp_path / "out")))
    names = {"model": build("residual"), "images": torch.zeros(2, 3, 32, 32)}
    exec(code, names)
    assert (tmp_path / "model.onnx").is_file() and (tmp_path / "out" / "quantized.pt2").is_file()


def test_your_own_model_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands as they stand there, but for a smaller network of the same library, random weights,
    and few steps."""
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"## Your own model\n\n```\n(.*?)```", README, re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    small = ("timm:test_resnet", "--random-weights", "--input-shape", "3,32,32")
    few = ("-s", "synthesis=1", "-s", "refine=1", "-s", "images=8", "-s", "reconstruct=0")
    assert [c[:2] for c in commands] == [
        ["pip", "install"],
        *(["zaq", verb] for verb in ("inspect", "quantize", "verify", "eval")),
    ]
    for _, verb, *args in commands[1:4]:
        words = [word for arg in args for word in (small if arg == "timm:resnet18" else (arg,))]
        done = zaq_here(verb, *words, *(few if verb == "quantize" else ()))
        assert done.exit_code == 0, done.stderr
    assert "the weights are random" in (tmp_path / "out" / "report.html").read_text()


def commands_of(text: str) -> tuple[list[list[str]], list[list[str]]]:
    """Every `zaq ...` of a page as words: the lines of its blocks, and what stands inside its sentences."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^zaq .*", blocks, re.MULTILINE), re.findall(r"`(zaq [^`]+)`", text)
    return tuple([shlex.split(line, comments=True)[1:] for line in found] for found in lines)  # type: ignore[return-value]


@pytest.mark.parametrize("page", ["README", *DOCS])
def test_every_command_is_one(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a block parses with the choices and the types that there are; a sentence names options that there are.
    Nothing is run.
    """
    monkeypatch.chdir(tmp_path)
    for run in ("out", "other", "RUN"):
        (tmp_path / run).mkdir()
    lines, mentioned = commands_of(README if page == "README" else DOCS[page])
    for verb, *words in lines:
        if "--config" not in words:  # which is read as it is parsed
            assert main.commands[verb].make_context(verb, words).params is not None
    for verb, *words in mentioned:
        if verb in ("VERB", "--debug"):
            continue
        flags = {flag for option in main.commands[verb].params for flag in option.opts}
        assert {w.partition("=")[0] for w in words if w.startswith("-")} - {"--help"} <= flags, (verb, words)


@pytest.mark.slow  # each of these is done by a test of its own already
def test_the_shell_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved("residual", tmp_path / "net.pt2")
    (block,) = re.findall(r"^# In the shell\n.*?```\n(.*?)```", DOCS["shell"], re.DOTALL)
    for line in block.splitlines():
        done = zaq_here(*shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: {done.output}"
    options = json.loads((tmp_path / "again" / "options.json").read_text())
    assert options["qconfig"]["layers"] == {"body": "8", "head": "float"} and options["seed"] == 1


@pytest.mark.slow  # each of these is done by a test of its own already
def test_python_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    batch = images(8), torch.arange(8) % 5
    names = {"model": build("residual"), "images": batch[0], "loader": [batch]}
    for code in re.findall(r"```python\n(.*?)```", DOCS["python"], re.DOTALL):
        exec(code, names)
    assert (tmp_path / "trained.onnx").is_file() and (tmp_path / "out" / "report.html").is_file()


def test_the_license_is_the_one_that_is_named() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["license"] == "Apache-2.0" and "Apache-2.0" in README
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]


def test_every_kind_of_source_has_its_command() -> None:
    specs = re.findall(r"`zaq quantize (\S+)", DOCS["models"])
    kinds = {Path(s).suffix if is_file(s) else f"{s.partition(':')[0]}:" for s in specs}
    assert kinds == set(SOURCES) - {".pt", ".safetensors", ".pkl", "package.module:"} | {"my_package.nets:"}


def test_commands_name_what_exists() -> None:
    assert DEFAULT == "zoo:resnet20_cifar10" and "resnet20_cifar10-w4a4/" in README
    text = "\n".join([README, *DOCS.values()])
    named = set(re.findall(r"--method ([\w.:]+)", text)) - {"my_package.mine:UniformNoise"}  # see test_plugins
    assert named <= set(METHODS)
    assert not re.search(r"\b(TODO|RESULTS|MAINJOB|MINUTES)\b", text)


def test_it_is_read_in_a_minute() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
    (results,) = re.findall(r"## Results\n(.*?)\n## ", README, re.DOTALL)
    rows = [line for line in results.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 8
    for row in rows:  # a number stands in one place more: the page that has all of them
        assert row.split("|")[-5:] in [line.split("|")[-5:] for line in DOCS["results"].splitlines()], row


@pytest.mark.parametrize("writer", ["csv", "SummaryWriter"])
def test_the_log_goes_where_the_page_says(run: Path, tmp_path: Path, writer: str) -> None:
    if writer == "SummaryWriter":
        pytest.importorskip("tensorboard")
    (code,) = [c for c in re.findall(r'^python -c "(.*)"(?: > log.csv)?$', DOCS["told"], re.MULTILINE) if writer in c]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    if writer == "csv":
        found = list(csv.DictReader(done.stdout.splitlines()))
        assert len(found) == len(rows) > 0 and [r["stage"] for r in found] == [r["stage"] for r in rows]
    else:
        assert list((tmp_path / "board").glob("events*"))


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of its successor, which is no fault of a page
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Quantize a trained network without data" in (tmp_path / "site" / "api" / "index.html").read_text()
