"""Networks that a function of the user's makes."""

from pathlib import Path

import pytest
import torch
from conftest import zaq, zaq_here

from zaq.errors import SourceError
from zaq.sources import load

CODE = """
import torch
from torch import nn

def make(width=4, classes=3):
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, classes)]
    return nn.Sequential(*layers)

def half(): return make().half()
def broken(): raise ValueError("the weights have moved\\nsecond line")
def number(): return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_nets.py").write_text(CODE)
    (tmp_path / "my_broken.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_factory_in_the_current_folder(here: Path) -> None:
    flags = ("--input-shape", "3,8,8", "--kwargs", '{"width": 8}', "--bits", "w8a8", "--method", "rtn")
    done = zaq("quantize", "my_nets:make", *flags, "-o", "out", cwd=here)
    assert done.returncode == 0, done.stderr
    assert zaq_here("verify", "out").exit_code == 0


def test_random_weights_are_the_same_every_time(here: Path) -> None:
    one, other = (load("my_nets:make", {"input": (3, 8, 8)}) for _ in range(2))
    assert one.sha256 == other.sha256 and one.name == "make"
    assert one.sha256 != load("my_nets:make", {"input": (3, 8, 8)}, kwargs={"classes": 4}).sha256


def test_half_precision_becomes_float32_and_that_is_said(here: Path) -> None:
    source, plain = (load(f"my_nets:{name}", {"input": (3, 8, 8)}) for name in ("half", "make"))
    assert {v.dtype for v in source.graph.parameters()} == {torch.float32}
    assert [n for n in source.notes if "float16" in n] and not [n for n in plain.notes if "float16" in n]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_nets:make", "what it takes is not known; say it: --input-shape 3,224,224"),
        ("my_nets:broken", r"my_nets:broken: the call with \(\) failed: ValueError: the weights have moved$"),
        ("my_nets:number", "returns int; a torch.nn.Module is expected"),
        ("my_nets:mak", "unknown factory of my_nets 'mak'. Did you mean 'make'"),
        ("my_nots:make", "unknown kind of source, or module of a factory, 'my_nots'"),
        ("my_broken:make", "importing my_broken failed: No module named 'no_such_library'"),
    ],
)
def test_factories_that_make_nothing(spec: str, message: str, here: Path) -> None:
    with pytest.raises(SourceError, match=message):
        load(spec)


def test_arguments_that_do_not_fit(here: Path) -> None:
    with pytest.raises(
        SourceError, match=r"the call with \(depth=3\) failed: TypeError: .*unexpected keyword argument 'depth'"
    ):
        load("my_nets:make", {"input": (3, 8, 8)}, kwargs={"depth": 3})


def test_a_module_is_taken_to_one_device_and_type(here: Path) -> None:
    (here / "my_half.py").write_text(
        "import torch\nmake = lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).half()"
    )
    graph = load("my_half:make", {"input": (3, 8, 8)}).graph
    assert graph(torch.zeros(2, 3, 8, 8)).dtype == torch.float32
