"""Options in groups, from a file, and offered by name; and that names which stand in two places are the same."""

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest
from conftest import zaq_here

from zaq.cli import kinds, main
from zaq.cli.command import Command
from zaq.config.targets import TARGETS
from zaq.cost.fastest import ALL
from zaq.cost.latency import Latency
from zaq.engine.work import PRECISIONS
from zaq.evaluate import TASKS
from zaq.export.forms import FORMS
from zaq.methods import METHODS


def test_the_names_that_a_shell_is_offered_are_those_there_are() -> None:
    assert set(kinds.METHODS) == set(METHODS) and set(kinds.TARGETS) == set(TARGETS)
    assert kinds.FORMS == FORMS and set(kinds.TASKS) == set(TASKS) and set(kinds.PRECISIONS) == set(PRECISIONS)


def test_every_option_of_quantize_is_in_a_group() -> None:
    command = main.commands["quantize"]
    assert isinstance(command, Command)
    named = [name for names in command.groups.values() for name in names]
    assert sorted(named) == sorted({p.name for p in command.params if isinstance(p, click.Option)})  # type: ignore[type-var]


def test_help_has_the_groups_and_examples_that_parse() -> None:
    done = zaq_here("quantize", "--help")
    command = main.commands["quantize"]
    assert isinstance(command, Command)
    assert all(f"\n{title}:\n" in done.output for title in [*command.groups, "Examples"])
    for example in command.examples:
        words = example.replace("'", "").split()[2:]
        if "--config" not in words:
            assert command.make_context("quantize", words).params["method"] == "flagship"


def test_a_run_is_repeated_by_its_options(model: Path, tmp_path: Path) -> None:
    """To the byte; and what the command line says goes before the file."""
    asked = ("--bits", "int4", "--method", "rtn", "--exclude", "head", "--layer-bits", "body=8", "--seed", 3)
    done = zaq_here("quantize", model, *asked, "--normalize", "imagenet", "-o", tmp_path / "a")
    assert done.exit_code == 0 and "layers with bits of their own: body: 8, head: float" in done.output, done.output
    done = zaq_here("quantize", "--config", tmp_path / "a" / "options.json", "-o", tmp_path / "b")
    assert done.exit_code == 0, done.output
    ours, theirs = ((tmp_path / name / "model.onnx").read_bytes() for name in "ab")
    assert ours == theirs
    done = zaq_here("quantize", "--config", tmp_path / "a" / "options.json", "--bits", "w3a3", "--dry-run")
    assert done.exit_code == 0 and "-w3a3/" in done.output and "seed 3" in done.output


def test_what_was_placed_by_time_is_repeated_by_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another time might be measured otherwise: the options say which layers, and not that they are to be found."""
    monkeypatch.setattr("zaq.cost.fastest.labels", lambda *_: frozenset(["conv2d_1"]))
    trial = Latency("trial 0", 1, 1, 1.0, 1.0, 1.0, 1, 2.0)  # whatever the clock says, it is the fastest
    rows = [trial, replace(trial, name=ALL, speedup=1.0)]
    monkeypatch.setattr("zaq.cost.fastest.measure", lambda *_: rows)
    asked = ("--bits", "8", "--method", "rtn", "--optimize", "latency", "--exclude", "head")
    done = zaq_here("quantize", model, *asked, "-o", tmp_path / "a")
    assert done.exit_code == 0 and "1 layer computes in float, with weights stored in 8 bits" in done.output
    call = json.loads((tmp_path / "a" / "options.json").read_text())["call"]
    assert call["optimize"] is None and len(call["layer_bits"]) == 1 and call["layer_bits"][0].endswith("=stored")
    monkeypatch.undo()
    done = zaq_here("quantize", "--config", tmp_path / "a" / "options.json", "-o", tmp_path / "b")
    assert done.exit_code == 0, done.output
    ours, theirs = ((tmp_path / name / "model.onnx").read_bytes() for name in "ab")
    assert ours == theirs


@pytest.mark.parametrize(("glance", "said"), [(0.5, "SLOWER than the float network: 0.50 times as fast"), (2.0, "")])
def test_a_slow_file_is_told_of_in_the_last_lines(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glance: float, said: str
) -> None:
    def speed(*_: object) -> dict[str, float]:
        return {"float": 1.0, "ours": 1 / glance, "times": glance, "batch": 1, "threads": 1}

    monkeypatch.setattr("zaq.cost.latency.speed", speed)
    done = zaq_here("quantize", model, "--bits", "8", "--method", "rtn", "-o", tmp_path / "a")
    assert said in done.output and f"{glance:.2f} times as fast" in done.output
    assert ("--optimize latency lets layers" in done.output) == bool(said)


def test_a_file_of_options_by_hand(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"source": str(model), "bits": "int8", "layer-bits": ["head=w8a8"], "s": ["lr=1"]}))
    done = zaq_here("quantize", "--config", path, "--method", "rtn", "--dry-run")
    assert done.exit_code == 2 and "unknown setting of rtn 'lr'" in done.stderr
    path.write_text(json.dumps({"source": str(model), "bits": "int8", "effort": "fats"}))
    done = zaq_here("quantize", "--config", path, "--dry-run")
    assert done.exit_code == 2 and "Did you mean 'fast'?" in done.stderr
    path.write_text(json.dumps({"source": str(model), "bits": "int8", "effort": "best"}))
    done = zaq_here("quantize", "--config", path, "--dry-run")
    assert done.exit_code == 0 and "effort best" in done.output and "net-w8a8/" in done.output


def test_normalize_none_is_what_it_says(tmp_path: Path) -> None:
    """The card of the shipped network has a mean; whoever says none feeds what is normalised already."""
    facts = json.loads(zaq_here("inspect", "--normalize", "none", "--json").stdout)
    assert facts["card"]["mean"] is None and facts["card"]["std"] is None
