"""How sources are spelt, what is asked of one, and that nothing a user was sent is ever unpickled."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, zaq_here
from zoo import build

from zaq.cli import main
from zaq.errors import SourceError
from zaq.sources import DEFAULT, SOURCES, load


def test_the_shipped_model_loads_and_is_trained() -> None:
    source = load(DEFAULT)
    card = json.loads((ROOT / "models" / "resnet20_cifar10.json").read_text())
    assert source.card.mean == tuple(card["mean"]) and source.card.classes == 10 and card["top1"] > 85
    assert source.graph(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert (ROOT / "models" / "resnet20_cifar10.safetensors").stat().st_size < 1.3e6


class Bomb:
    """Unpickling this raises: a test that sees the error has seen the pickle being run."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('the pickle ran')",))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    for content in (pickle.dumps(Bomb()), pickle.dumps(Bomb(), protocol=5)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=r"(?s)pickle can run any code.*torch\.export\.save"):
            load(str(tmp_path / name))
    torch.save(Bomb(), tmp_path / name)
    with pytest.raises(SourceError, match=r"(?s)pickle can run any code.*torch\.export\.save"):
        load(str(tmp_path / name))


def test_whole_modules_and_torchscript_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(build("residual"), tmp_path / "whole.pth")
    with pytest.raises(SourceError, match=r"(?s)whole\.pth.*torch\.export\.save.*--arch"):
        load(str(tmp_path / "whole.pth"))
    with pytest.warns(DeprecationWarning):
        torch.jit.trace(build("residual"), torch.zeros(1, 3, 16, 16)).save(tmp_path / "script.pt")
    done = zaq_here("inspect", tmp_path / "script.pt")
    assert (
        done.exit_code == 2
        and "script.pt: is a TorchScript archive" in done.stderr
        and "torch.export.save(" in done.stderr
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zoo:resnet2", "Did you mean 'resnet20_cifar10'"),
        ("timmm:x", r"unknown kind of source, or module of a factory, 'timmm'\. Did you mean 'timm'"),
        ("no.such:thing", "there is no module 'no', installed or in"),
        ("none.pt2", "no such file"),
        ("hf-hub:name", "OWNER/NAME is expected"),
        (".", "is a folder"),
    ],
)
def test_spellings_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load(spec)


def test_flags_that_mean_nothing_to_a_source_are_refused(tmp_path: Path) -> None:
    for flag, value in (("--arch", "resnet20"), ("--kwargs", '{"a": 1}'), ("--random-weights", None)):
        done = CliRunner().invoke(main, ["inspect", DEFAULT, flag, *([value] if value else [])])
        assert done.exit_code == 2 and f"{flag} means nothing" in done.stderr
    for text in ("{", "[1]"):
        done = CliRunner().invoke(main, ["inspect", "a.b:c", "--kwargs", text])
        assert done.exit_code == 2 and "is no JSON object" in done.stderr


@pytest.mark.parametrize(
    ("spec", "library", "extra"),
    [
        ("timm:resnet18", "timm", "timm"),
        ("torchvision:resnet18", "torchvision.models", "timm"),
        ("hf-hub:a/b", "timm", "timm"),
    ],
)
def test_a_library_that_is_not_there_names_the_extra(
    spec: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = zaq_here("inspect", spec)
    assert (
        done.exit_code == 2
        and f"{spec}: {library} is needed" in done.stderr
        and f"pip install '.[{extra}]'" in done.stderr
    )


def test_help_names_every_kind() -> None:
    text = CliRunner().invoke(main, ["quantize", "--help"]).output
    assert all(kind in text for kind in SOURCES if kind != ".pkl")
