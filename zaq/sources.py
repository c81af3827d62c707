"""Where a model comes from: a name or a path in, (graph, card) out. Nothing is unpickled."""

import ast
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.fx import GraphModule

from zaq.config import Card
from zaq.errors import SourceError, unknown
from zaq.graph import from_exported, input_node, quiet, trace
from zaq.zoo import ARCHITECTURES

__all__ = ["DEFAULT", "SOURCES", "Source", "load", "read_program", "read_pt2"]

DEFAULT = "zoo:resnet20_cifar10"
SAVE_IT = (
    "Load it yourself where you trust it, then save it as .pt2:\n"
    "  program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))\n"
    "  torch.export.save(program, 'model.pt2')"
)
SIZE_WORDS = {
    "Add", "And", "CeilDiv", "CleanDiv", "Eq", "FloorDiv", "Ge", "Gt", "Integer", "IntTrueDiv", "Le", "Lt", "Max", "Min",
    "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Pow", "PythonMod", "Rational", "Symbol", "int_oo", "oo",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model as a functional graph, what is known of its input, and the hash of the file it was read from."""

    name: str
    graph: GraphModule
    card: Card
    sha256: str


def load(spec: str, overrides: dict[str, object] | None = None) -> Source:
    """Load `zoo:NAME`, `file.pt2` or the like, and its card; `overrides` are card fields that flags gave.

    Raises SourceError for a file that is missing, that is no model, or that would have to be unpickled.
    """
    kind, colon, name = spec.partition(":")
    if colon and re.fullmatch(r"[a-z_-]{2,}", kind):
        if kind != "zoo":
            raise SourceError(f"{spec}: " + unknown("kind of source", kind, ["zoo"]))
        path = _zoo_path(name)
    else:
        path = Path(spec)
        if not path.exists():
            raise SourceError(f"{spec}: there is no such file. A model is a .pt2 file, or {DEFAULT}.")
    suffix = path.suffix.lower()
    if suffix not in SOURCES:
        raise SourceError(f"{path}: cannot tell a model by {suffix or 'no suffix'!r}; there is: {', '.join(SOURCES)}.")
    card = Card.beside(path).override(**(overrides or {}))
    graph = SOURCES[suffix](path)
    card = _fit(path, graph, card)
    return Source(path.stem, graph, card, hashlib.sha256(path.read_bytes()).hexdigest())


def _zoo_path(name: str) -> Path:
    """Where a shipped model lies: beside this package in a wheel, one folder up in a checkout."""
    here = Path(__file__).resolve().parent
    folder = next((d for d in (here / "models", here.parent / "models") if any(d.glob("*.safetensors"))), None)
    found = {p.stem: p for p in folder.glob("*.safetensors")} if folder else {}
    if name not in found:
        raise SourceError(f"zoo:{name}: " + unknown("model", name, found))
    return found[name]


def _fit(path: Path, graph: GraphModule, card: Card) -> Card:
    """The card with the shape that the graph was traced at; raises where flags or card say another."""
    shape = tuple(int(d) for d in input_node(graph).meta["val"].shape[1:])
    if card.input and tuple(card.input) != shape:
        raise SourceError(f"{path}: the model takes inputs of {shape}, card or flags say {tuple(card.input)}.")
    return card.override(input=shape)


def read_pt2(path: Path) -> GraphModule:
    """The graph of a torch.export file; raises as `read_program` does."""
    return from_exported(read_program(path))


def read_program(path: Path) -> torch.export.ExportedProgram:
    """The program of a torch.export file. Raises SourceError rather than unpickle any part of it."""
    _refuse_pickles(path)
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{path}: torch.export cannot read it: {reason}") from error


def _refuse_pickles(path: Path) -> None:
    """torch.export.load unpickles parts of a .pt2, and evaluates its symbolic sizes: allow neither to run code."""
    if not zipfile.is_zipfile(path):
        raise SourceError(f"{path}: this is no .pt2 file (it is not an archive).")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(n.endswith("data.pkl") for n in names):
            raise SourceError(f"{path}: this is a pickle, which can run any code when it is loaded. {SAVE_IT}")
        if not any("/models/" in n for n in names):
            raise SourceError(f"{path}: this archive holds no exported program.")
        for name in names:
            data = archive.read(name) if name.endswith((".json", ".pt")) else b""
            if ("/weights/" in name and name.endswith(".pt")) or ("/constants/" in name and name.endswith(".pt")):
                raise SourceError(f"{path}: {name} is a pickle, which can run any code when it is loaded. {SAVE_IT}")
            if name.endswith(".pt"):
                _require_plain_tensors(path, name, data)
            elif name.endswith(".json"):
                _require_plain_json(path, name, data)


def _is_size(expression: str) -> bool:
    """Whether a symbolic size, which torch hands to sympy's evaluator, is made of nothing but symbols and arithmetic."""
    plain = (ast.Expression, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load, ast.operator, ast.unaryop, ast.cmpop)
    try:
        nodes = list(ast.walk(ast.parse(expression.strip(), mode="eval")))
    except SyntaxError:
        return False
    for node in nodes:
        if isinstance(node, ast.Name):
            if node.id not in SIZE_WORDS and not re.fullmatch(r"[su]\d+", node.id):
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not re.fullmatch(r"\w+", node.value):
                return False
        elif not isinstance(node, plain):
            return False
    return True


def _require_plain_tensors(path: Path, name: str, data: bytes) -> None:
    try:
        if data:
            torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise SourceError(f"{path}: {name} holds more than tensors and would have to be unpickled. {SAVE_IT}") from error


def _require_plain_json(path: Path, name: str, data: bytes) -> None:
    def check(value: object) -> None:
        if isinstance(value, dict):
            pickled = value.get("use_pickle") or str(value.get("path_name", "")).startswith(("custom_obj", "opaque_obj"))
            if pickled:
                raise SourceError(f"{path}: {name} refers to pickled objects, which zaq does not load. {SAVE_IT}")
            expression = value.get("expr_str")
            if isinstance(expression, str) and not _is_size(expression):
                raise SourceError(f"{path}: {name} holds the expression {expression[:40]!r}, which is no size.")
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)

    try:
        check(json.loads(data))
    except ValueError as error:
        raise SourceError(f"{path}: {name} is not readable ({error}).") from error


def _from_safetensors(path: Path) -> GraphModule:
    """Weights whose architecture the card names (`arch`) and zaq.zoo has."""
    card = path.with_suffix(".json")
    values = json.loads(card.read_text()) if card.is_file() else {}
    arch = str(values.get("arch", ""))
    if arch not in ARCHITECTURES:
        hint = unknown("arch", arch, ARCHITECTURES)
        raise SourceError(f"{path}: weights alone are no model; its card {card.name} must name an arch: {hint}")
    try:
        state = load_file(path)
        model = ARCHITECTURES[arch](classes=values.get("classes", 10))
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"{path}: the weights do not fit {arch}: {reason}") from error
    return trace(model, torch.zeros(2, *values.get("input", (3, 32, 32))))


def _refuse_pickle(path: Path) -> GraphModule:
    raise SourceError(f"{path}: a pickle can run any code when it is loaded, so zaq does not. {SAVE_IT}")


SOURCES: dict[str, Callable[[Path], GraphModule]] = {
    ".pt2": read_pt2,
    ".safetensors": _from_safetensors,
    ".pt": _refuse_pickle,
    ".pth": _refuse_pickle,
    ".pkl": _refuse_pickle,
}
