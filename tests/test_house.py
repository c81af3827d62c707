"""The package polices itself: imports point one way, names are exported, methods can open no data."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from zoo import SHAPE, images, traced

import zaq
from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.stage import Stage
from zaq.engine.task import Task
from zaq.methods import METHODS, Method

PACKAGE = Path(zaq.__file__).parent
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages([str(PACKAGE)], "zaq.")
    if not m.name.endswith("__main__") and ".models" not in m.name
)
# A module may import those whose rank is lower, or its own package.
LAYERS = (
    {"errors"},
    {"compute"},
    {"config"},
    {"ir"},
    {"passes", "sources"},
    {"quant"},
    {"engine"},
    {"stats", "synth"},
    {"stages"},
    {"methods"},
    {"export", "data"},
    {"verify", "cost"},
    {"report"},
    {"evaluate", "run"},
    {"use"},
    {"quantized"},
    {"arguments"},
    {"api"},
    {"explain", "pipeline", "score"},
    {"benchmark"},
    {"cli"},
)
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imports(name: str) -> set[str]:
    module = importlib.import_module(name)
    nodes = list(ast.walk(ast.parse(Path(str(module.__file__)).read_text())))
    found = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    named = [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names]
    found |= set(named) & set(MODULES)
    found |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return {f for f in found if f.split(".")[0] == "zaq"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    own = name.split(".")[1]
    for imported in imports(name) - {"zaq"}:
        other = imported.split(".")[1]
        assert own == other or RANKS[other] < RANKS[own], f"{name} imports {imported}"


def test_every_system_can_import_it() -> None:
    """Locks are filelock's; nothing is imported that Windows has not."""
    texts = {name: Path(str(importlib.import_module(name).__file__)).read_text() for name in MODULES}
    pattern = r"^\s*(?:import|from) (?:fcntl|grp|posix|pty|pwd|resource|syslog|termios|tty)\b"
    assert not [name for name, text in texts.items() if re.search(pattern, text, re.MULTILINE)]
    script = Path(__file__).parents[1] / "benchmarks" / "coverage.py"  # which measures its memory, and would be told of
    assert re.search(pattern, script.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["zaq", *MODULES])
def test_public_names_are_sorted_and_there(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n)), name
    for public in names:
        assert getattr(getattr(module, public), "__doc__", "") or not callable(getattr(module, public)), (
            f"{name}.{public} has no docstring"
        )


def reached_from(names: list[str]) -> set[str]:
    seen: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += imports(name) - {"zaq"}
    return seen


def test_methods_cannot_open_a_data_set() -> None:
    """Nothing a method can reach by imports reads images: no part of zaq.data, no evaluation, no PIL; and none imports
    by name.
    """
    methods = [
        m for m in MODULES if m.split(".")[1] in ("methods", "stages", "engine", "stats", "synth", "quant", "passes")
    ]
    assert {"zaq.methods.ft", "zaq.methods.gdfq", "zaq.synth.generators", "zaq.quant.op", "zaq.passes.fold"} <= set(
        methods
    )
    seen = reached_from(methods)
    assert not [n for n in seen if f"{n}.".startswith(("zaq.data.", "zaq.evaluate."))]
    sources = {n: Path(str(importlib.import_module(n).__file__)).read_text() for n in seen}
    sources.pop("zaq.config.plugins")  # which imports what the user names, and nothing else
    assert not [n for n, text in sources.items() if any(word in text for word in ("PIL", "importlib", "__import__"))]


def test_that_check_sees_every_way_to_import() -> None:
    assert "zaq.data.layouts" in reached_from(["zaq.pipeline"]) and "zaq.report.facts" in imports("zaq.api")


@pytest.mark.parametrize("name", METHODS)
def test_only_a_method_that_says_so_can_be_handed_images(name: str) -> None:
    """`ft` alone. The others take a task, and there is no room in their call for anything else."""
    method = METHODS[name]
    assert method.reads_data == (name == "ft")
    parameters = inspect.signature(method().stages).parameters
    assert list(parameters) == (["task", "batches"] if name == "ft" else ["task"])
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


def test_images_are_not_handed_to_a_method_that_does_not_say_so() -> None:
    handed: list[tuple[object, ...]] = []

    class Greedy(Method):
        def stages(self, task: Task, *data: object) -> list[Stage]:
            handed.append((task, *data))
            return []

    def real() -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("somebody looked")
        yield images(1), torch.zeros(1)

    quantize_graph(traced("residual"), QConfig.parse("w8a8"), Greedy(), card=Card(input=SHAPE), real=real())
    assert len(handed) == 1 and len(handed[0]) == 1


def test_help_waits_for_nothing_heavy() -> None:
    """Public names are imported when they are asked for, verbs import what they need when they run."""
    assert set(zaq.HOMES) == set(zaq.__all__) and all(
        getattr(zaq, name).__module__.startswith("zaq.") for name in zaq.__all__
    )
    code = "import sys, zaq.cli; assert not {'torch', 'numpy', 'onnx', 'matplotlib', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
