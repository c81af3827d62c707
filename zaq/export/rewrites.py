"""Rewrites of the ONNX file, in place: what can be done on integers, behind QuantizeLinear, is done there."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from zaq.export.integers import Constants, constants_of, drop_unread, to_integers

__all__ = ["clip_integers", "count_values", "hand_through", "move_integers", "pool_globally", "requantize_by_table"]

MOVES = {"DepthToSpace", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


def pool_globally(model: ModelProto) -> None:
    """ReduceMean over H and W as GlobalAveragePool, for which integer kernels exist (in place)."""
    graph = model.graph
    constants = constants_of(model)
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        if sorted(int(a) % 4 for a in constants[node.input[1]].reshape(-1)) != [2, 3]:
            continue
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        pooled = node.output[0] if keep else f"{node.output[0]}_pooled"
        new = [helper.make_node("GlobalAveragePool", [node.input[0]], [pooled])]
        if not keep:
            new.append(helper.make_node("Flatten", [pooled], [node.output[0]], axis=1))
        graph.node.remove(node)
        for n in reversed(new):
            graph.node.insert(index, n)


def hand_through(model: ModelProto) -> None:
    """Let a node write every output (in place), as ONNX wants it: of a constant, of the input, or of another output."""
    graph = model.graph
    given, seen = {i.name for i in graph.input} | {t.name for t in graph.initializer}, set[str]()
    for number, output in enumerate(graph.output):
        if output.name in given | seen:
            graph.node.append(helper.make_node("Identity", [output.name], [f"{output.name}_as_output_{number}"]))
            output.name = graph.node[-1].output[0]
        seen.add(output.name)


def count_values(model: ModelProto) -> None:
    """Average pooling without padding as one that counts values only (in place), which is the same.

    Where ceil_mode lets a window reach over the edge, onnxruntime's QLinearAveragePool would count what lies beyond.
    """
    for node in model.graph.node:
        attributes = {a.name: a for a in node.attribute}
        if (
            node.op_type == "AveragePool"
            and "pads" in attributes
            and not any(attributes["pads"].ints)
            and "count_include_pad" in attributes
        ):
            attributes["count_include_pad"].i = 0


def clip_integers(model: ModelProto) -> None:
    """Move clamps behind the QuantizeLinear that follows them, where they clip integers or nothing at all (in place).

    Rounding keeps order, so min(x, c) rounded is min(x rounded, c rounded); and what the integers' own ends or the Clip
    of their bits do already need not be done twice. ReLU on a grid that begins at zero costs nothing.
    """
    graph = model.graph
    constants = constants_of(model)
    for quantize in [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]:
        scale, zero = constants[quantize.input[1]], constants[quantize.input[2]]
        ends = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
        clip = next((n for n in graph.node if quantize.output[0] in n.input and n.op_type == "Clip"), None)
        low, high = [int(constants[i]) for i in clip.input[1:3]] if clip is not None else ends
        wanted, channels = [low, high], list[tuple[str, NDArray[Any]]]()
        while (clamp := _clamp_before(graph, quantize, constants)) is not None:
            node, limits = clamp
            quantize.input[0] = node.input[0]
            graph.node.remove(node)
            for kind, limit in limits.items():
                steps = to_integers(limit, scale, zero, axis=0)
                if (steps <= low).all() if kind == "Max" else (steps >= high).all():
                    continue
                if (steps != steps.flat[0]).any():
                    channels.append((kind, steps))
                elif kind == "Max":
                    wanted[0] = max(wanted[0], int(steps.flat[0]))
                else:
                    wanted[1] = min(wanted[1], int(steps.flat[0]))
        if wanted != [low, high] or channels:
            _clip_behind(graph, clip or quantize, wanted if tuple(wanted) != ends else [], channels, zero.dtype)
    drop_unread(model)


def _clamp_before(
    graph: GraphProto, node: NodeProto, constants: Constants
) -> tuple[NodeProto, dict[str, NDArray[Any]]] | None:
    """The clamp that a node reads and is the only reader of, and its ends, by the operation that each is: Max, Min."""
    maker = next((n for n in graph.node if node.input[0] in n.output), None)
    read = sum(node.input[0] == name for n in graph.node for name in n.input) + sum(
        node.input[0] == o.name for o in graph.output
    )
    if maker is None or read > 1 or not all(i in constants for i in maker.input[1:] if i):
        return None
    given = [constants[i] if i else None for i in maker.input[1:]]
    if maker.op_type == "Relu":
        return maker, {"Max": np.zeros((), np.float32)}
    if maker.op_type == "Clip":
        return maker, {kind: end for kind, end in zip(("Max", "Min"), given, strict=False) if end is not None}
    if maker.op_type in ("Max", "Min") and len(given) == 1 and given[0] is not None:
        return maker, {maker.op_type: given[0]}
    return None


def _clip_behind(
    graph: GraphProto, node: NodeProto, ends: list[int], channels: list[tuple[str, NDArray[Any]]], dtype: np.dtype[Any]
) -> None:
    """Clip the integers that a node writes: one pair of ends for all, and ends for each channel. An old Clip is
    replaced.
    """
    source, written = (node.input[0] if node.op_type == "Clip" else node.output[0]), node.output[0]
    steps = [("Clip", [np.array(e, dtype) for e in ends])] if ends else []
    steps += [(kind, [limit]) for kind, limit in channels]
    new: list[NodeProto] = []
    for number, (kind, limits) in enumerate(steps):
        names = [f"{written}_{kind.lower()}_{number}_{i}" for i in range(len(limits))]
        graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in zip(names, limits, strict=True))
        new.append(helper.make_node(kind, [source, *names], [f"{written}_clipped_{number}"]))
        source = new[-1].output[0]
    _read_instead([n for n in graph.node if n is not node and n not in new], written, source)
    at = list(graph.node).index(node) + 1
    for made in reversed(new):
        graph.node.insert(at, made)


def keep_floats(model: ModelProto) -> None:
    """Let a layer with a float weight stay in float (in place): onnxruntime rounds such a weight to 8 bits by itself
    where the layer stands between a DequantizeLinear and a QuantizeLinear (its pull request 22969). So something stands
    in between that changes no value and that it does not take away: the greater of each and the least number.
    """
    graph = model.graph
    constants, makers = constants_of(model), {o: n for n in graph.node for o in n.output}
    for node in [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm") and n.input[1] in constants]:
        readers, source = _readers(graph, node), makers.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear" or [r.op_type for r in readers] != ["QuantizeLinear"]:
            continue
        least, behind = f"{node.output[0]}_least", f"{node.output[0]}_float"
        graph.initializer.append(numpy_helper.from_array(np.float32(np.finfo(np.float32).min), least))
        _read_instead(readers, node.output[0], behind)
        graph.node.insert(list(graph.node).index(node) + 1, helper.make_node("Max", [node.output[0], least], [behind]))


def move_integers(model: ModelProto) -> None:
    """Take out what is quantized again behind an operation that only moves values (in place).

    Integers that were clipped before it need no second Clip. A padding pads the integers themselves, one with zeros
    with their zero point: onnxruntime would run it in float between the two.
    """
    graph = model.graph
    constants = constants_of(model)
    for node in list(graph.node):
        before = next((n for n in graph.node if node.input[0] in n.output), None) if node.op_type in MOVES else None
        after = _readers(graph, node)
        if before is None or before.op_type != "DequantizeLinear" or [n.op_type for n in after] != ["QuantizeLinear"]:
            continue
        behind = _readers(graph, after[0])
        clipped = [n.op_type for n in behind] == ["Clip"]
        end = _readers(graph, behind[0]) if clipped else behind
        same = all(
            (constants[a] == constants[b]).all() for a, b in zip(before.input[1:], after[0].input[1:], strict=True)
        )
        if not same or {n.op_type for n in end} != {"DequantizeLinear"}:
            continue
        if clipped:
            _read_instead(end, behind[0].output[0], after[0].output[0])
        if node.op_type == "Pad" and (_pads_zeros(node, constants) or _repeats(node)):
            node.input[:] = [before.input[0], node.input[1], "" if _repeats(node) else before.input[2], *node.input[3:]]
            _read_instead(end, after[0].output[0], node.output[0])
    drop_unread(model)


def requantize_by_table(model: ModelProto) -> None:
    """Put an operation that changes nothing between a tensor on one grid and a QuantizeLinear to another (in place).

    Of DequantizeLinear, LeakyRelu and QuantizeLinear onnxruntime makes one look-up in a table of 256 integers; without
    an operation between them it would write the tensor out in float.
    """
    graph = model.graph
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "QuantizeLinear" and node.input[0] in dequantized:
            same = f"{node.output[0]}_same"
            graph.node.insert(index, helper.make_node("LeakyRelu", [node.input[0]], [same], alpha=1.0))
            node.input[0] = same


def _readers(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    return [n for n in graph.node if set(n.input).intersection(node.output)]


def _read_instead(nodes: list[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]


def _repeats(node: NodeProto) -> bool:
    """Whether a padding puts values of the tensor itself around it."""
    return any(a.name == "mode" and a.s != b"constant" for a in node.attribute)


def _pads_zeros(node: NodeProto, constants: Constants) -> bool:
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    value = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    return mode == b"constant" and value is not None and not value.any()
