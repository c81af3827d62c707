"""Rewrites of the ONNX file, in place: quantized constants become integer initializers, and what can be done on integers is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

__all__ = [
    "avoid_overflow", "clip_integers", "count_values", "drop_unread", "move_integers", "pool_globally", "requantize_by_table",
    "store_integers",
]  # fmt: skip

INT16_MAX = 32767
MOVES = {"DepthToSpace", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
Constants = dict[str, NDArray[Any]]


def pool_globally(model: ModelProto) -> None:
    """ReduceMean over H and W as GlobalAveragePool, for which integer kernels exist (in place)."""
    graph = model.graph
    constants = _constants(model)
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


def store_integers(model: ModelProto, float_biases: bool = False) -> None:
    """Fold Quantize(-Clip) of constants into integer initializers, and biases into int32 (in place).

    `float_biases`: those stay the floats they are, whole steps of s_x s_w all the same.
    """
    graph = model.graph
    constants = _constants(model)
    makers = {output: node for node in graph.node for output in node.output}
    dead: list[NodeProto] = []
    added: dict[str, NDArray[Any]] = {}
    dequantized: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}  # output of a DequantizeLinear -> scale, integers
    for node in list(graph.node):
        if node.op_type != "DequantizeLinear":
            continue
        chain = [makers.get(node.input[0])]
        if chain[0] is not None and chain[0].op_type == "Clip":
            chain.append(makers.get(chain[0].input[0]))
        first = chain[-1]
        if first is None or first.op_type != "QuantizeLinear" or first.input[0] not in constants:
            dequantized[node.output[0]] = (constants[node.input[1]], np.empty(0))
            continue
        weight, scale, zero_point = (constants[i] for i in first.input)
        integers = _quantize(weight, scale, zero_point, node.attribute[0].i)
        if len(chain) > 1 and chain[0] is not None:
            integers = integers.clip(*[constants[i] for i in chain[0].input[1:3]])
        # Initializers of their own, even of a shared weight: onnxruntime's x64quantprecision mode rewrites them in place.
        name, zero = f"{node.output[0]}_quantized", f"{node.output[0]}_zero_point"
        integers, zero_point = _one_zero_point(integers, constants[node.input[2]], node.attribute[0].i)
        added[name], added[zero] = integers, zero_point
        node.input[0], node.input[2] = name, zero
        dequantized[node.output[0]] = (constants[node.input[1]], integers)
        dead += [n for n in chain if n is not None]
    for node in dead:
        if node in graph.node:
            graph.node.remove(node)
    if not float_biases:
        _store_biases(model, constants, dequantized, added)
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in added.items())
    drop_unread(model)


def _store_biases(
    model: ModelProto,
    constants: dict[str, NDArray[Any]],
    dequantized: dict[str, tuple[NDArray[Any], NDArray[Any]]],
    added: dict[str, NDArray[Any]],
) -> None:
    """Biases of layers whose input and weight are quantized become int32 initializers with a DequantizeLinear."""
    graph = model.graph
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in constants:
            continue
        if node.input[0] not in dequantized or node.input[1] not in dequantized:
            continue
        scale = (dequantized[node.input[0]][0] * dequantized[node.input[1]][0]).astype(np.float32)
        bias = constants[node.input[2]]
        name = f"{node.input[2]}_int32"
        added[name] = np.rint(bias / scale).astype(np.int32)
        added[f"{name}_scale"] = scale
        output = f"{name}_dequantized"
        new = helper.make_node("DequantizeLinear", [name, f"{name}_scale"], [output], output)
        if scale.ndim:
            new.attribute.append(helper.make_attribute("axis", 0))
        graph.node.insert(index, new)
        node.input[2] = output


def clip_integers(model: ModelProto) -> None:
    """Move clamps behind the QuantizeLinear that follows them, where they clip integers or nothing at all (in place).

    Rounding keeps order, so min(x, c) rounded is min(x rounded, c rounded); and what the integers' own ends or the Clip
    of their bits do already need not be done twice. ReLU on a grid that begins at zero costs nothing.
    """
    graph = model.graph
    constants = _constants(model)
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
                steps = _quantize(limit, scale, zero, axis=0)
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


def _clamp_before(graph: GraphProto, node: NodeProto, constants: Constants) -> tuple[NodeProto, dict[str, NDArray[Any]]] | None:
    """The clamp that a node reads and is the only reader of, and its ends, by the operation that each is: Max, Min."""
    maker = next((n for n in graph.node if node.input[0] in n.output), None)
    read = sum(node.input[0] == name for n in graph.node for name in n.input) + sum(node.input[0] == o.name for o in graph.output)
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
    """Clip the integers that a node writes: one pair of ends for all, and ends for each channel. An old Clip is replaced."""
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


def move_integers(model: ModelProto) -> None:
    """Take out what is quantized again behind an operation that only moves values (in place).

    Integers that were clipped before it need no second Clip. A padding with zeros pads the integers themselves with
    their zero point: onnxruntime would run it in float between the two.
    """
    graph = model.graph
    constants = _constants(model)
    for node in list(graph.node):
        before = next((n for n in graph.node if node.input[0] in n.output), None) if node.op_type in MOVES else None
        after = _readers(graph, node)
        if before is None or before.op_type != "DequantizeLinear" or [n.op_type for n in after] != ["QuantizeLinear"]:
            continue
        behind = _readers(graph, after[0])
        clipped = [n.op_type for n in behind] == ["Clip"]
        end = _readers(graph, behind[0]) if clipped else behind
        same = all((constants[a] == constants[b]).all() for a, b in zip(before.input[1:], after[0].input[1:], strict=True))
        if not same or {n.op_type for n in end} != {"DequantizeLinear"}:
            continue
        if clipped:
            _read_instead(end, behind[0].output[0], after[0].output[0])
        if node.op_type == "Pad" and _pads_zeros(node, constants):
            node.input[:] = [before.input[0], node.input[1], before.input[2], *node.input[3:]]
            _read_instead(end, after[0].output[0], node.output[0])
    drop_unread(model)


def requantize_by_table(model: ModelProto) -> None:
    """Put an operation that changes nothing between a tensor on one grid and a QuantizeLinear to another (in place).

    Of DequantizeLinear, LeakyRelu and QuantizeLinear onnxruntime makes one look-up in a table of 256 integers; without an
    operation between them it would write the tensor out in float.
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


def _pads_zeros(node: NodeProto, constants: Constants) -> bool:
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    value = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    return mode == b"constant" and value is not None and not value.any()


def avoid_overflow(model: ModelProto) -> None:
    """Store weights as uint8 where a pair of products exceeds int16 (in place); see `zaq.export.onnx`.

    Not beside int8 activations: no kernel takes int8 x uint8. Depthwise kernels widen products before they add them.
    """
    constants = _constants(model)
    tensors = {t.name: t for t in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not all(i in makers for i in node.input[:2]):
            continue
        activation, weight = makers[node.input[0]], makers[node.input[1]]
        if {activation.op_type, weight.op_type} != {"DequantizeLinear"} or weight.input[0] not in tensors:
            continue
        clip = makers.get(activation.input[0])
        largest = int(numpy_helper.to_array(tensors[clip.input[2]])) if clip is not None and clip.op_type == "Clip" else 255
        integers = numpy_helper.to_array(tensors[weight.input[0]])
        depthwise = next((a.i for a in node.attribute if a.name == "group"), 1) == len(integers) > 1
        if constants[activation.input[2]].dtype == np.int8 or depthwise:
            continue
        if integers.dtype != np.int8 or largest * _largest_pair(integers.T if node.op_type == "MatMul" else integers) <= INT16_MAX:
            continue
        for name in (weight.input[0], weight.input[2]):
            shifted = (numpy_helper.to_array(tensors[name]).astype(np.int16) + 128).astype(np.uint8)
            tensors[name].CopyFrom(numpy_helper.from_array(shifted, name))


def _largest_pair(weight: NDArray[Any]) -> int:
    """The largest sum of two neighbours of one sign, in the two orders in which kernels lay a weight out."""
    orders = [weight.reshape(len(weight), -1)]
    if weight.ndim == 4:
        orders.append(weight.transpose(0, 2, 3, 1).reshape(len(weight), -1))
    signed = [part for rows in orders for part in (rows.astype(np.int32).clip(0), (-rows.astype(np.int32)).clip(0))]
    return max(int((p[:, 1:] + p[:, :-1]).max()) if p.shape[1] > 1 else int(p.max()) for p in signed)


def _constants(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Initializers and the values of Constant nodes, by name."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return constants


def _along(values: NDArray[Any], axis: int, dims: int) -> NDArray[Any]:
    """Values of each channel, shaped to broadcast along `axis`; a scalar as it is."""
    return values.reshape([-1 if d == axis else 1 for d in range(dims)]) if values.ndim else values


def _quantize(x: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int) -> NDArray[Any]:
    """What QuantizeLinear computes."""
    scale, zero = _along(scale, axis, x.ndim), _along(zero, axis, x.ndim)
    info = np.iinfo(zero.dtype)
    q = np.rint(x / scale) + zero
    integers: NDArray[Any] = q.clip(info.min, info.max).astype(zero.dtype)
    return integers


def _one_zero_point(integers: NDArray[Any], zero: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights whose channels have different zero points as int8 around 0, or as int16 where 8 bits do not hold that.

    onnxruntime's QLinearConv takes one zero point a weight, whatever the file says. (No kernel takes int16: such a layer,
    of a grid for comparison, computes in float. As floats its weight would be quantized anew, to int8, on load.)
    """
    if not zero.ndim or (zero == zero.flat[0]).all():
        return integers, zero
    shifted = integers.astype(np.int16) - _along(zero, axis, integers.ndim).astype(np.int16)
    kind = np.int8 if shifted.min() >= -128 and shifted.max() <= 127 else np.int16
    return shifted.astype(kind), np.zeros_like(zero, dtype=kind)


def drop_unread(model: ModelProto) -> None:
    """Remove nodes, initializers and type notes that nothing reads any more."""
    graph = model.graph
    while True:
        read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
        unread = [n for n in graph.node if not read.intersection(n.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
