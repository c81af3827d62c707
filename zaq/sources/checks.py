"""What a torch.export program may say before torch is handed it. torch compiles its names, evaluates its sizes, imports
what its structures name and calls whatever an operator is called; here each is held against the little that models
need.

Every function raises ValueError, with what was found.
"""

import ast
import json
import keyword
import math
import re
from collections.abc import Callable
from typing import Any

import torch

from zaq.config.bounds import json_parts, plain_json
from zaq.sources.base import SAVE_IT

__all__ = ["check_program", "check_weights"]

SIZE_WORDS = {
    "Add", "And", "CeilDiv", "CleanDiv", "Eq", "FloorDiv", "Ge", "Gt", "Integer", "IntTrueDiv", "Le", "Lt", "Max",
    "Min",
    "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Pow", "PythonMod", "Rational", "Symbol", "int_oo", "oo",
}  # fmt: skip
ARITHMETIC = (
    ast.Expression, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load, ast.cmpop,
    ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub,
)  # fmt: skip
SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")  # torch counts up to the number of u17
EXPRESSION, POWER = 4000, 8  # characters of a size; the greatest exponent in one

# Operators by namespace: all whose arguments cannot name a file, or these.
NAMESPACES: dict[str, set[str] | None] = {
    "aten": None,
    "prims": None,
    "zaq": {"fake_quantize"},
    "torchvision": {"nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"},
}
# The text arguments that say how an operator computes. Any other could be the name of a file.
TEXTS = {
    "UPLO", "approximate", "assert_msg", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "p",
    "pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side",
}  # fmt: skip
VALUES = re.compile(
    r"(Optional\[|List\[)*(Tensor|int|SymInt|bool|SymBool|float|complex|number|Device|Generator|str)\]*"
)
STATE = re.compile(r"_?set(_data|_grad_enabled)?_?|from_file|save|_print|warn")  # of torch, of storage, of the terminal
FUNCTIONS = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|mod|truediv|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(float|int|ite|max|min|not)"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
)
STRUCTURES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
NODE_KEYS = ("stack_trace", "nn_module_stack")  # of what a node remembers: where it stands in the user's code
STORED = re.compile(r"(weight|tensor)_\d+")
ALIASED = 2**24  # elements that weights may have beyond the bytes they lie in


def check_program(program: Any) -> dict[str, Any]:
    """A program (the JSON of `models/model.json`) in which every name is an identifier, every operator a known one and
    every size a sum of products; what zaq has no use for is taken out.
    """
    module = program["graph_module"]
    module["metadata"], module["treespec_namedtuple_fields"], program["guards_code"] = {}, {}, []
    module["module_call_graph"] = [c for c in module["module_call_graph"] if c["fqn"] == ""]
    ranges = program["range_constraints"]
    for name in ranges:
        _require(_is_size(name), "the symbol", name)
    # A size that is made of others (`32*s0`) has a range as well, which follows from theirs: torch reads none.
    program["range_constraints"] = {name: ranges[name] for name in ranges if SYMBOL.fullmatch(name)}
    for _, key, part in json_parts(program):
        if isinstance(part, dict):
            _check_object(part)
        elif key in CHECKS and part is not None and not isinstance(part, list):
            CHECKS[key](part)
        elif key.startswith(("custom_obj", "as_custom_obj")) and part is not None:
            raise ValueError("it holds objects that are not tensors")
    return dict(program)


def check_weights(config: Any, sizes: dict[str, int]) -> list[str]:
    """The entries that weights lie in, by their description (`*_config.json`) and every entry's bytes. Raises
    ValueError
    for a pickle, and for weights that are more than what lies there.
    """
    elements, stored = 0, []
    for name, about in config["config"].items():
        entry, meta = str(about["path_name"]), about["tensor_meta"]
        if about["use_pickle"] or meta is None or not STORED.fullmatch(entry):
            raise ValueError(f"{name!r} is a pickle, which can run any code when it is loaded. {SAVE_IT}")
        _check_attribute(name)
        shape, strides, (offset,) = (
            [v["as_int"] for v in values] for values in (meta["sizes"], meta["strides"], [meta["storage_offset"]])
        )
        if not all(type(v) is int and v >= 0 for v in (*shape, *strides, offset)) or len(shape) != len(strides):
            raise ValueError(f"{name!r} has the shape {shape} and the strides {strides}")
        reach = offset + 1 + sum((s - 1) * t for s, t in zip(shape, strides, strict=True))
        if 0 not in shape and reach > sizes.get(entry, 0):
            raise ValueError(f"{name!r} of shape {shape} reaches beyond the {sizes.get(entry, 0)} bytes it lies in")
        elements += math.prod(shape)
        stored.append(entry)
    if elements > sum(sizes[entry] for entry in set(stored) if entry in sizes) + ALIASED:
        raise ValueError(f"its weights have {min(elements, 10**99):.3g} elements, which are not in the file")
    return list(dict.fromkeys(stored))


def _require(valid: object, what: str, found: object) -> None:
    if not valid:
        raise ValueError(f"{what} {str(found)[:60]!r} is none that a model needs")


def _check_object(part: dict[str, Any]) -> None:
    for key, value in part.items():
        if key.endswith("_values") and isinstance(value, dict):
            for name in value:
                _check_name(name)
    if "target" in part and isinstance(part.get("metadata"), dict):
        part["metadata"] = {k: v for k, v in part["metadata"].items() if k in NODE_KEYS}


def _check_name(name: Any) -> None:
    plain = isinstance(name, str) and (not name or (name.isidentifier() and not keyword.iskeyword(name)))
    _require(plain, "the name", name)


def _check_attribute(name: Any) -> None:
    """A path of attributes, none of them Python's own."""
    plain = isinstance(name, str) and re.fullmatch(r"[\w.]+", name) and not re.search(r"(^|\.)__", name)
    _require(plain, "the name", name)


def _check_operator(target: Any) -> None:
    _require(isinstance(target, str), "the operator", target)
    if FUNCTIONS.fullmatch(target):
        return
    found = re.fullmatch(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", target)
    _require(found and found[1] in NAMESPACES, "the operator", target)
    assert found is not None
    space, name, overload = found.groups()
    allowed = NAMESPACES[space]
    if allowed is None:
        operator = getattr(getattr(getattr(torch.ops, space), name, None), overload, None)
        _require(isinstance(operator, torch._ops.OpOverload) and not STATE.fullmatch(name), "the operator", target)
        for argument in operator._schema.arguments:  # type: ignore[union-attr]
            kind = str(argument.type)
            plain = VALUES.fullmatch(kind) and ("str" not in kind or argument.name in TEXTS)
            _require(plain, f"the argument {argument.name!r} of the operator", target)
    else:
        _require(name in allowed, "the operator", target)


def _check_size(text: Any) -> None:
    """A symbolic size, which torch hands to sympy's evaluator: symbols and arithmetic that stays small."""
    _require(isinstance(text, str) and len(text) <= EXPRESSION and _is_size(text), "the size", text)


def _is_size(text: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    powers = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "Pow"]
    return all(map(_is_plain, nodes)) and all(map(_is_small_power, powers))


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):  # of a word, and of a symbol with what it is (positive=True)
        return isinstance(node.func, ast.Name) and node.func.id in SIZE_WORDS
    if isinstance(node, ast.Name):
        return node.id in SIZE_WORDS or bool(SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return bool(SYMBOL.fullmatch(node.value))
        return isinstance(node.value, int) and abs(node.value) < 2**63
    return isinstance(node, ARITHMETIC)


def _is_small_power(call: ast.Call) -> bool:
    """Whether an exponent is a small number, and no other power lies inside: powers of powers fill any memory."""
    inner = [n for argument in call.args for n in ast.walk(argument)]
    exponents = [n.value for n in ast.walk(call.args[-1]) if isinstance(n, ast.Constant)] if call.args else []
    return (
        len(call.args) == 2
        and not any(isinstance(n, ast.Name) and n.id == "Pow" for n in inner)
        and len(exponents) == 1
        and isinstance(exponents[0], int)
        and abs(exponents[0]) <= POWER
        and not any(isinstance(n, ast.BinOp) for n in ast.walk(call.args[-1]))
    )


def _check_structure(text: Any, named: bool = False) -> None:
    """How inputs or outputs are nested: containers and their keys. `named`: keys become names of arguments."""
    _require(isinstance(text, str), "the structure", text)
    _, top = plain_json(text)
    for _, _, part in json_parts(top):
        if not isinstance(part, dict):
            continue
        kind, context = part["type"], part["context"]
        _require(kind in STRUCTURES, "the structure", kind)
        keys = plain_json(context) if isinstance(context, str) else context
        _require(keys is None or isinstance(keys, list), "the structure", context)
        for key in keys or []:
            _require(isinstance(key, str | int), "the key", json.dumps(key))
            if named:
                _check_name(key)


CHECKS: dict[str, Callable[[Any], None]] = {
    "name": _check_name,
    "as_name": _check_name,
    "forward_arg_names": _check_name,
    "parameter_name": _check_attribute,
    "buffer_name": _check_attribute,
    "tensor_constant_name": _check_attribute,
    "user_input_name": _check_name,
    "target": _check_operator,
    "as_operator": _check_operator,
    "expr_str": _check_size,
    "in_spec": lambda text: _check_structure(text, named=True),
    "out_spec": _check_structure,
}
