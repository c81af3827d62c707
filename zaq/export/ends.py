"""The ends of a file, in place: named, typed and shaped as the source's were, with what its file said beside them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from zaq.sources.frame import rename
from zaq.sources.interface import End, Interface

__all__ = ["INPUT", "OUTPUT", "SIZES", "behind_casts", "declare", "dress", "inner", "renamed", "reshape_ends"]

INPUT, OUTPUT = "input", "output"  # where a source names nothing
INNER = "_inner"  # put behind the name of a tensor within, where an end has it
SIZES = ("batch", "channels", "height", "width")


def dress(model: ModelProto, interface: Interface) -> None:
    """Give a file the interface of its source: its names, its documentation, and a Cast where an end is of another
    type. `reshape_ends` says the sizes.
    """
    graph = model.graph
    given = [*zip(graph.input, interface.inputs, strict=False), *zip(graph.output, interface.outputs, strict=False)]
    names = {value.name: end.name for value, end in given}
    written = {n for node in graph.node for n in node.output} | {t.name for t in graph.initializer}
    taken = {n: inner(n) for n in written.intersection(names.values()).difference(names)}
    rename(graph, taken | names)
    for value, end in zip(graph.input, interface.inputs, strict=False):
        if kinds := _another_kind(graph, value, end):
            graph.node.insert(0, helper.make_node("Cast", [value.name], [kinds.within], to=kinds.ours))
    for value, end in zip(graph.output, interface.outputs, strict=False):
        if kinds := _another_kind(graph, value, end):
            graph.node.append(helper.make_node("Cast", [kinds.within], [value.name], to=kinds.theirs))
    if interface.graph:
        graph.name = interface.graph
    graph.doc_string, model.doc_string = interface.graph_doc, interface.doc
    model.domain, model.model_version = interface.domain, interface.version


def inner(name: str) -> str:
    """What a tensor within is called whose own name an end has."""
    return f"{name}{INNER}"


class _Kinds(NamedTuple):
    """The tensor within, its type, and the type of the end."""

    within: str
    ours: int
    theirs: int


def _another_kind(graph: GraphProto, value: ValueInfoProto, end: End) -> _Kinds | None:
    """Give an end the source's type, and the tensor within a name of its own; None where they are of one type."""
    theirs, ours = TensorProto.DataType.Value(end.kind), value.type.tensor_type.elem_type
    if theirs in (ours, TensorProto.UNDEFINED):
        return None
    name, within = value.name, f"{value.name}_{TensorProto.DataType.Name(ours).lower()}"
    rename(graph, {name: within})
    value.name, value.type.tensor_type.elem_type = name, theirs
    return _Kinds(within, ours, theirs)


def reshape_ends(model: ModelProto, interface: Interface) -> None:
    """Declare sizes: fixed where the source fixes them, else called as there.

    What the file itself fixes stays so: the source leaves it open, and something in the network depends on it.
    """
    called: dict[str, str] = {}
    for value, end in zip(model.graph.input, interface.inputs, strict=False):
        called |= _declare_as(value, end)
    for value, end in zip(model.graph.output, interface.outputs, strict=False):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = renamed(dim.dim_param, called)
        _declare_as(value, end)


def renamed(size: str, names: dict[str, str]) -> str:
    """An open size, which may be computed from others (`height//2`), with other names for them."""
    return re.sub(r"\w+", lambda m: names.get(m[0], m[0]), size)


def _declare_as(value: ValueInfoProto, end: End) -> dict[str, str]:
    """Declare a tensor's sizes as the source does where they are of one number; what was called otherwise before."""
    dims, called = value.type.tensor_type.shape.dim, {}
    value.doc_string = end.doc
    if end.shape is None or len(end.shape) != len(dims):
        return {}
    for dim, size in zip(dims, end.shape, strict=True):
        if dim.dim_value:
            continue
        if isinstance(size, int):
            dim.dim_value = size
        elif isinstance(size, str) and end.shape.count(size) == 1 and re.search(r"\w", size):
            called[dim.dim_param] = dim.dim_param = size
    return called


def declare(model: ModelProto, batch: int | str, image: Sequence[int] = ()) -> None:
    """Say how many images a file takes (a name: any number), and of which size (C, H, W) where it takes any."""
    first, *rest = model.graph.input[0].type.tensor_type.shape.dim
    if isinstance(batch, int):
        first.dim_value = batch
    else:
        first.dim_param = batch
    for dim, size in zip(rest, image, strict=False):
        if not dim.dim_value:
            dim.dim_value = size


def behind_casts(graph: GraphProto) -> list[str]:
    """The tensors that a file's outputs are, before a Cast gives them the source's type."""
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    return [casts.get(o.name, o.name) for o in graph.output]
