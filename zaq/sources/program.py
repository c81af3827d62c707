"""Models as torch.export files. No part of one is unpickled, and no expression in one evaluated that is more than a
size.
"""

import ast
import io
import json
import re
import zipfile
from pathlib import Path

import torch
from torch.fx import GraphModule

from zaq.errors import SourceError
from zaq.ir.capture import from_exported, quiet
from zaq.ir.nodes import input_node
from zaq.sources.base import SAVE_IT, Request, Source, cast_note, file_hash

__all__ = ["read_program", "read_program_source", "read_pt2"]

SIZE_WORDS = {
    "Add", "And", "CeilDiv", "CleanDiv", "Eq", "FloorDiv", "Ge", "Gt", "Integer", "IntTrueDiv", "Le", "Lt", "Max", "Min",
    "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Pow", "PythonMod", "Rational", "Symbol", "int_oo", "oo",
}  # fmt: skip


def read_program_source(request: Request) -> Source:
    """The program that a .pt2 file holds, at the shape that it was exported with."""
    path, card = request.file(), request.card()
    program = read_program(path)
    graph = from_exported(program)
    shape = tuple(int(d) for d in input_node(graph).meta["val"].shape[1:])
    if card.input and tuple(card.input) != shape:
        raise SourceError(f"{path}: the model takes inputs of {shape}, card or flags say {tuple(card.input)}.")
    return Source(path.stem, graph, card.override(input=shape), file_hash(path), cast_note(program.state_dict.values()))


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
    plain = (
        ast.Expression,
        ast.Call,
        ast.keyword,
        ast.BinOp,
        ast.UnaryOp,
        ast.Compare,
        ast.Load,
        ast.operator,
        ast.unaryop,
        ast.cmpop,
    )
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
        raise SourceError(
            f"{path}: {name} holds more than tensors and would have to be unpickled. {SAVE_IT}"
        ) from error


def _require_plain_json(path: Path, name: str, data: bytes) -> None:
    def check(value: object) -> None:
        if isinstance(value, dict):
            pickled = value.get("use_pickle") or str(value.get("path_name", "")).startswith(
                ("custom_obj", "opaque_obj")
            )
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
