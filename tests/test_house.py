"""The package polices itself: imports point one way, names are exported, methods can open no data."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import zaq

PACKAGE = Path(zaq.__file__).parent
MODULES = sorted(
    m.name for m in pkgutil.walk_packages([str(PACKAGE)], "zaq.") if not m.name.endswith("__main__") and ".models" not in m.name
)
# A module may import those whose rank is lower, or its own package.
LAYERS = (
    {"errors"},
    {"config", "progress", "zoo"},
    {"graph"},
    {"passes", "sources"},
    {"quant"},
    {"synth"},
    {"methods"},
    {"export", "data", "report"},
    {"evaluate", "inspect", "page", "api", "run"},
    {"pipeline"},
    {"benchmark"},
    {"cli"},
)
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imports(name: str) -> set[str]:
    module = importlib.import_module(name)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    return {f for f in found if f.split(".")[0] == "zaq"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    own = name.split(".")[1]
    for imported in imports(name) - {"zaq"}:
        other = imported.split(".")[1]
        assert own == other or RANKS[other] < RANKS[own], f"{name} imports {imported}"


@pytest.mark.parametrize("name", ["zaq", *MODULES])
def test_public_names_are_sorted_and_there(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n)), name
    for public in names:
        assert getattr(getattr(module, public), "__doc__", "") or not callable(getattr(module, public)), f"{name}.{public} has no docstring"


def test_methods_cannot_open_a_data_set() -> None:
    """Nothing a method can reach by imports reads images: no zaq.data, no evaluation, no PIL."""
    seen, todo = set(), ["zaq.methods.zaq", "zaq.methods.job", "zaq.methods.loop"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += imports(name) - {"zaq"}
    assert not {"zaq.data", "zaq.evaluate"} & seen
    assert not any("PIL" in Path(str(importlib.import_module(n).__file__)).read_text() for n in seen)
