"""What stands around the part of an ONNX file that is quantized, and is put around the quantized part again.

Before it: a Transpose from NHWC, a Cast from uint8 or half precision. Behind it: what makes no floats (ArgMax,
NonMaxSuppression, TopK, masks) and what reads another input than the image, with all that follows and what only moves
values before it. None of that has an integer kernel, and some of it no form in torch. A program of torch.export has
such a frame as well, where its images come as (N, H, W, C) or its ends are no float32.

A frame is an ONNX model with a hole: the network's input is one of its outputs, and the network's outputs are inputs
of it. `HOLE` in its properties says which.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, version_converter
from onnx.external_data_helper import uses_external_data

from zaq.config.bounds import json_text, plain_json
from zaq.errors import SourceError
from zaq.sources.base import first_line
from zaq.sources.interface import End, opset_of
from zaq.sources.layout import NCHW, NHWC, is_nhwc
from zaq.sources.normal import FLOATS, HALVES, OPSET

__all__ = ["HOLE", "Cut", "cut", "frame_of", "network_of", "put_back", "rename"]

HOLE, FRAME = "zaq.hole", "zaq.frame"
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity"}
CHOICES = {"TopK", "NonMaxSuppression", "NonZero", "Unique"}  # by values; what they give has a form in torch of no use
SIZES = {"Shape", "Size"}  # of a tensor they read no value


@dataclass(frozen=True)
class Cut:
    """The network inside: one float32 input (N, C, H, W); its frame, where there is anything around it; and what was
    found of the file's image: what it is called, whether it is (N, H, W, C), whether it takes whole pixels, 0 to 255;
    and what a report has to say."""

    network: ModelProto
    frame: bytes | None
    image: str
    nhwc: bool
    integers: bool
    notes: tuple[str, ...]


def _bind(model: ModelProto, values: Mapping[str, Iterable[float]], spec: str) -> None:
    """Make constants of inputs (in place): as many numbers as the input takes, or one for all of it; open sizes are 1.

    Raises SourceError for an input that is not there or takes another number of them.
    """
    inputs = {i.name: i for i in model.graph.input}
    for name, numbers in values.items():
        if name not in inputs:
            raise SourceError(f"{spec}: --bind {name}: there is no such input; it takes: {', '.join(inputs)}.")
        kind, given = inputs[name].type.tensor_type, np.array(list(numbers))
        shape = [d.dim_value or 1 for d in kind.shape.dim]
        if given.size not in (1, math.prod(shape)):
            raise SourceError(f"{spec}: --bind {name}: {given.size} numbers, where it takes {math.prod(shape)}.")
        stored = np.broadcast_to(given if given.size == 1 else given.reshape(shape), shape)
        stored = np.ascontiguousarray(stored, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        model.graph.initializer.append(numpy_helper.from_array(stored, name))
        model.graph.input.remove(inputs[name])


def cut(model: ModelProto, spec: str, bound: Mapping[str, Iterable[float]] | None = None, layout: str = "") -> Cut:
    """Take the network out of what stands around it. `model`: as `normal.normalised` leaves it, and changed.

    `bound`: values of inputs, which become constants. The file goes on taking them, and reads them no more.
    `layout`: of the image, NCHW or NHWC; empty for what the graph shows.
    Raises SourceError where there is no one image, where another input is read on the way, or where the image is not
    of that layout.
    """
    graph = model.graph
    inputs = list(graph.input)
    _bind(model, bound or {}, spec)
    image = _image(graph, spec)
    notes = _turn(graph, image, spec, layout)
    head, network, dims = _head(graph, image, spec)
    nodes = [n for n in graph.node if n not in head]
    others = {i.name for i in graph.input} - {image.name}
    values = _behind(nodes, {network, *others})
    tail = _tail(model, nodes, network, others, spec)
    inside = [n for n in nodes if n not in tail]
    made = {network, *(o for n in inside for o in n.output)}.intersection(values)
    around = [n for n in nodes if n in tail or n in _sizes(tail, nodes, values)]
    outputs = [o.name for o in graph.output]
    asked = dict.fromkeys([*(i for n in around for i in _read(n)), *outputs])
    holes = [name for name in asked if name in made]
    if not holes or holes == [network]:
        raise SourceError(f"{spec}: no output is computed from the image by layers with weights; nothing to quantize.")
    entry = helper.make_tensor_value_info(network, TensorProto.FLOAT, dims)
    inner = _part(model, inside, [entry], [_floats(h) for h in holes])
    notes += tuple(f"its input {name!r} is bound; what is given there is not read" for name in bound or {})
    integers = image.type.tensor_type.elem_type not in FLOATS
    found = Cut(inner, None, image.name, any(_turns(n) for n in head), integers, notes)
    if not head and not around and len(inputs) == 1 and holes == outputs:
        return found
    frame = _part(model, [*head, *around], [*inputs, *map(_floats, holes)], [*graph.output, _floats(network)])
    written = {t.name for t in frame.graph.initializer}  # an input that has a value already need not be given
    frame.graph.initializer.extend(t for t in graph.initializer if t.name in (bound or {}) and t.name not in written)
    helper.set_model_props(frame, {HOLE: json_text({"input": network, "outputs": holes})})
    return replace(found, frame=frame.SerializeToString())


def frame_of(image: End, outputs: Iterable[End], nhwc: bool) -> bytes | None:
    """The frame of a network of floats whose ends are of other types, or whose images come as (N, H, W, C): Casts and
    a Transpose; None where neither is so."""
    kind, head, network = TensorProto.DataType.Value(image.kind), list[NodeProto](), image.name
    if nhwc:
        network = f"{image.name}_nchw"
        head.append(helper.make_node("Transpose", [image.name], [network], perm=NCHW))
    if kind != TensorProto.FLOAT:
        head.append(helper.make_node("Cast", [network], [f"{network}_float32"], to=TensorProto.FLOAT))
        network = f"{network}_float32"
    holes, tail, ends = list[str](), list[NodeProto](), list[ValueInfoProto]()
    for end in outputs:
        kind_of = TensorProto.DataType.Value(end.kind)
        holes.append(f"{end.name}_float32" if kind_of in HALVES else end.name)
        if kind_of in HALVES:
            tail.append(helper.make_node("Cast", holes[-1:], [end.name], to=kind_of))
        ends.append(helper.make_tensor_value_info(end.name, kind_of, None))
    if not head and not tail:
        return None
    entry = helper.make_tensor_value_info(image.name, kind, image.shape)
    graph = helper.make_graph([*head, *tail], "frame", [entry, *map(_floats, holes)], [*ends, _floats(network)])
    frame = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    helper.set_model_props(frame, {HOLE: json_text({"input": network, "outputs": holes})})
    return bytes(frame.SerializeToString())


def put_back(network: bytes, frame: bytes | None) -> bytes:
    """A file of the network, and around it what was cut off. Raises SourceError where opsets do not go together."""
    if frame is None:
        return network
    inner, model = onnx.load_model_from_string(network), _opened(frame)
    hole = _property(model, HOLE)
    opset = opset_of(inner)
    assert opset is not None  # zaq wrote it
    if opset_of(model) != opset:
        try:
            model = version_converter.convert_version(model, opset)
        except Exception as error:  # of onnx's own kinds: an operation without an adapter
            raise SourceError(
                f"what stands around the network has no form at opset {opset}: {first_line(error)}"
            ) from error
    ends = {inner.graph.input[0].name: hole["input"][0]}
    ends |= {o.name: name for o, name in zip(inner.graph.output, hole["outputs"], strict=True)}
    before = {"input": [*hole["input"], inner.graph.input[0].name]}
    before["outputs"] = [name for o in inner.graph.output for name in (ends[o.name], o.name)]
    _rename(inner.graph, ends, _names(model.graph))
    graph = GraphProto(name=inner.graph.name)
    behind = _behind(model.graph.node, set(hole["outputs"]))
    late = [n for n in model.graph.node if behind.intersection(n.output)]
    graph.node.extend([*(n for n in model.graph.node if n not in late), *inner.graph.node, *late])
    graph.initializer.extend([*model.graph.initializer, *inner.graph.initializer])
    graph.input.extend(i for i in model.graph.input if i.name not in hole["outputs"])
    graph.output.extend(o for o in model.graph.output if o.name not in hole["input"])
    _size_outputs(graph, inner.graph)
    outside = {v.name for v in [*graph.input, *graph.output]}
    graph.value_info.extend(v for v in [*inner.graph.input, *inner.graph.output] if v.name not in outside)
    inner.graph.CopyFrom(graph)
    inner.metadata_props.add(key=FRAME, value=json_text(before))
    onnx.checker.check_model(inner)
    return bytes(inner.SerializeToString())


def _size_outputs(graph: GraphProto, network: GraphProto) -> None:
    """Outputs of no known sizes have those of the network's outputs that they are, or are cast from (in place)."""
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    sizes = {o.name: o.type.tensor_type.shape for o in network.output if o.type.tensor_type.HasField("shape")}
    for value in graph.output:
        known = sizes.get(value.name, sizes.get(casts.get(value.name, "")))
        if known is not None and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.CopyFrom(known)


def network_of(content: bytes) -> bytes:
    """The network inside a file that `put_back` wrote, as it was before; any other file as it is."""
    if FRAME.encode() not in content:
        return content
    model = onnx.load_model_from_string(content)
    if not any(p.key == FRAME for p in model.metadata_props):
        return content
    before, graph = _property(model, FRAME), model.graph
    values = {v.name: v for v in [*graph.value_info, *graph.input, *graph.output]}
    entry, exits = before["input"][0], before["outputs"][::2]
    if entry not in values or len(before["input"]) != 2 or len(before["outputs"]) % 2:
        raise SourceError(f"what the file says of its frame is not what it holds: there is no {entry!r}.")
    for dim in values[entry].type.tensor_type.shape.dim[:1]:
        dim.dim_param = "batch"  # of the network, whatever the file around it has
    kinds = [values[e].type.tensor_type.elem_type if e in values else TensorProto.FLOAT for e in exits]
    ends = [helper.make_tensor_value_info(e, kind, None) for e, kind in zip(exits, kinds, strict=True)]
    inner = _part(model, _upto(graph.node, entry, exits), [values[entry]], ends)
    names = {entry: before["input"][1], **dict(zip(exits, before["outputs"][1::2], strict=True))}
    _rename(inner.graph, names, set())
    helper.set_model_props(inner, {p.key: p.value for p in model.metadata_props if p.key != FRAME})
    return bytes(inner.SerializeToString())


def _opened(frame: bytes) -> ModelProto:
    """A frame, which has all its weights in itself."""
    try:
        model = onnx.load_model_from_string(frame)
    except Exception as error:  # protobuf's DecodeError, from whichever protobuf is installed
        raise SourceError(f"the frame of the network is no ONNX file ({first_line(error)}).") from error
    if any(uses_external_data(t) for t in model.graph.initializer):
        raise SourceError("the frame of the network has weights in other files; zaq wrote none such.")
    return model


def _property(model: ModelProto, name: str) -> dict[str, list[str]]:
    """The ends of a hole, as `cut` and `put_back` write them. Raises SourceError where they are of another form."""
    try:
        found = plain_json(next(p.value for p in model.metadata_props if p.key == name))
        first, names = found["input"], found["outputs"]
        if not all(isinstance(n, str) for n in (*([first] if isinstance(first, str) else first), *names)):
            raise ValueError("names are expected")
    except (StopIteration, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"what a file says of its frame ({name}) is of another form than zaq's.") from error
    return {"input": [first] if isinstance(first, str) else list(first), "outputs": list(names)}


def _image(graph: GraphProto, spec: str) -> ValueInfoProto:
    """The one input that is a batch of images."""
    inputs = list(graph.input)
    ranks = [len(i.type.tensor_type.shape.dim) if i.type.tensor_type.HasField("shape") else None for i in inputs]
    images = [i for i, rank in zip(inputs, ranks, strict=True) if rank == 4 or (rank is None and len(inputs) == 1)]
    if len(inputs) == 1 and not images:
        raise SourceError(
            f"{spec}: its input {inputs[0].name!r} has {ranks[0]} dimensions; images (N, C, H, W) are expected."
        )
    if len(images) != 1:
        names = ", ".join(i.name for i in inputs) or "none"
        raise SourceError(
            f"{spec}: the model must take one tensor, a batch of images; it takes: {names}. What is the same in every "
            "use can be bound: --bind NAME=1,1."
        )
    image: ValueInfoProto = images[0]
    return image


def _turn(graph: GraphProto, image: ValueInfoProto, spec: str, layout: str) -> tuple[str, ...]:
    """Where images come as (N, H, W, C) and are not turned at once, turn them and turn them back: the first is cut off,
    the second is of the network. Returns what a report has to say of a guess."""
    sizes = [d.dim_value for d in image.type.tensor_type.shape.dim]
    name, at = image.name, 0
    readers = [n for n in graph.node if name in _read(n)]
    if len(readers) == 1 and readers[0].op_type == "Cast":
        name, at = readers[0].output[0], list(graph.node).index(readers[0]) + 1
        readers = [n for n in graph.node if name in _read(n)]
    at_once = len(readers) == 1 and _turns(readers[0])
    found = "NHWC" if at_once else "NCHW" if any(n.op_type == "Conv" for n in readers) else ""
    nhwc, notes = is_nhwc(spec, image.name, sizes, found, layout)
    if at_once or not nhwc:
        return notes
    turned, back = f"{name}_turned", f"{name}_turned_back"
    for node in readers:
        node.input[:] = [back if i == name else i for i in node.input]
    graph.node.insert(at, helper.make_node("Transpose", [name], [turned], perm=NCHW))
    graph.node.insert(at + 1, helper.make_node("Transpose", [turned], [back], perm=NHWC))
    return notes


def _turns(node: NodeProto) -> bool:
    perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
    return node.op_type == "Transpose" and perm == NCHW


def _head(graph: GraphProto, image: ValueInfoProto, spec: str) -> tuple[list[NodeProto], str, list[int | str] | None]:
    """The Cast and the Transpose that an image goes through first, the name behind them, and the sizes there."""
    head, name = list[NodeProto](), image.name
    dims: list[int | str] = [
        d.dim_value or d.dim_param or f"size_{i}" for i, d in enumerate(image.type.tensor_type.shape.dim)
    ]
    kind = image.type.tensor_type.elem_type
    while len(readers := [n for n in graph.node if name in _read(n)]) == 1 and name not in {
        o.name for o in graph.output
    }:
        (node,) = readers
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        if _turns(node) and NCHW not in [list(a.ints) for n in head for a in n.attribute]:
            dims = [dims[i] for i in NCHW] if dims else dims
        elif node.op_type == "Cast" and to == TensorProto.FLOAT:
            kind = to
        else:
            break
        head.append(node)
        name = node.output[0]
    if kind != TensorProto.FLOAT:
        word = TensorProto.DataType.Name(kind).lower()
        raise SourceError(f"{spec}: its input {image.name!r} is {word}; a batch of images in float32 is expected.")
    return head, name, dims or None


def _tail(model: ModelProto, nodes: list[NodeProto], network: str, others: set[str], spec: str) -> list[NodeProto]:
    """What makes no floats of the image, and what reads another input; what follows; what only moves values before."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.output]}
    used = {i for n in nodes for i in _read(n)} | {o.name for o in graph.output}
    images, side = _behind(nodes, {network}), _behind(nodes, others)
    stored = {t.name for t in graph.initializer}
    ahead = set[str]()  # values that a layer with weights is computed from
    for node in reversed(nodes):
        if ahead.intersection(node.output) or (node.op_type in WEIGHTED and stored.intersection(node.input[1:2])):
            ahead.update(_read(node))
    late = set[str]()
    tail = []
    for node in nodes:
        reads = set(_read(node))
        whole = (node.op_type in CHOICES and bool(images.intersection(reads))) or any(
            kinds.get(o, TensorProto.FLOAT) != TensorProto.FLOAT for o in node.output if o in used and o in images
        )
        aside = bool(side.intersection(node.output))
        weighted = node.op_type in WEIGHTED and bool(stored.intersection(node.input[1:2]))
        if aside and (weighted or ahead.intersection(node.output)):
            names = ", ".join(sorted(others.intersection(_origins(nodes, reads, others)))) or ", ".join(sorted(others))
            raise SourceError(
                f"{spec}: the model must take one tensor, a batch of images; its input {names} is read before its last "
                f"layer. If it is the same in every use, bind it: --bind {names.split(', ')[0]}=1,1."
            )
        if not ahead.intersection(node.output) and not weighted and (whole or aside or late.intersection(reads)):
            tail.append(node)
            late.update(node.output)
    outputs = {o.name for o in graph.output}
    for node in reversed(nodes):
        readers = [n for n in nodes if set(node.output).intersection(_read(n))]
        moves = node.op_type in MOVES and not images.intersection(node.input[1:])
        alone = readers and all(n in tail for n in readers) and not outputs.intersection(node.output)
        if node not in tail and moves and alone and images.intersection(node.output):
            tail.append(node)
    return tail


def _origins(nodes: list[NodeProto], names: set[str], among: set[str]) -> set[str]:
    """Which of the inputs `among` some values are computed from."""
    seen = set(names)
    for node in reversed(nodes):
        if seen.intersection(node.output):
            seen.update(_read(node))
    return seen.intersection(among)


def _sizes(tail: list[NodeProto], nodes: list[NodeProto], values: set[str]) -> list[NodeProto]:
    """What computes the sizes that a tail is told, from no more than shapes."""
    wanted = {i for n in tail for i in _read(n)}
    found = []
    for node in reversed(nodes):
        if node not in tail and wanted.intersection(node.output) and not values.intersection(node.output):
            found.append(node)
            wanted.update(_read(node))
    return found


def _behind(nodes: Iterable[NodeProto], names: set[str]) -> set[str]:
    """The values that are computed from some, and those; in the order of nodes."""
    found = set(names)
    for node in nodes:
        if node.op_type not in SIZES and found.intersection(_read(node)):
            found.update(o for o in node.output if o)
    return found


def _upto(nodes: Iterable[NodeProto], entry: str, exits: list[str]) -> list[NodeProto]:
    """The nodes that some values are computed by, from a value on."""
    wanted, kept = set(exits) - {entry}, list[NodeProto]()
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(i for i in _read(node) if i != entry)
    return kept[::-1]


def _read(node: NodeProto) -> list[str]:
    """What a node reads, and what the graphs inside it do."""
    inner = [a.g for a in node.attribute if a.type == a.GRAPH]
    return [*(i for i in node.input if i), *(i for g in inner for n in g.node for i in _read(n))]


def _part(
    model: ModelProto, nodes: Iterable[NodeProto], inputs: Iterable[ValueInfoProto], outputs: Iterable[ValueInfoProto]
) -> ModelProto:
    """Some of a model's nodes, with the weights that they read, as a model."""
    nodes, outputs = list(nodes), list(outputs)
    read = {i for n in nodes for i in _read(n)} | {o.name for o in outputs}
    stored = [t for t in model.graph.initializer if t.name in read]
    graph = helper.make_graph(nodes, model.graph.name or "graph", list(inputs), outputs, stored)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _floats(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _names(graph: GraphProto) -> set[str]:
    values = [*graph.input, *graph.output, *graph.initializer]
    return {v.name for v in values} | {name for n in graph.node for name in (*n.input, *n.output)}


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, all of them at once (in place)."""
    for node in graph.node:
        for read_or_written in (node.input, node.output):
            read_or_written[:] = [names.get(n, n) for n in read_or_written]
    for value in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        value.name = names.get(value.name, value.name)


def _rename(graph: GraphProto, ends: Mapping[str, str], taken: set[str]) -> None:
    """Give values the names `ends` says, and others such as are not taken (in place)."""
    names = dict(ends)
    used = _names(graph) | taken | set(ends.values())
    for name in sorted(_names(graph) - set(ends)):
        new = name
        while new in taken or new in ends.values():
            new = f"{new}_"
            new = new if new not in used else f"{new}_"
        names[name] = new
    rename(graph, names)
