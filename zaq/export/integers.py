"""Rewrites of the ONNX file, in place: quantized constants become integer initializers, and what can be done on integers is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

__all__ = ["avoid_overflow", "clip_integers", "pool_globally", "store_integers"]

INT16_MAX = 32767


def pool_globally(model: ModelProto) -> None:
    """ReduceMean over H and W as GlobalAveragePool, for which integer kernels exist (in place)."""
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
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
        if integers.dtype == np.int16:  # fits no 8-bit type: a comparison's grid, kept as the floats it stands for
            constants[node.output[0]] = added[node.output[0]] = _dequantize(integers, scale, zero_point, node.attribute[0].i)
            dead += [node, *(n for n in chain if n is not None)]
            continue
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
    _drop_unread(model)


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


Ends = tuple[NDArray[Any] | None, NDArray[Any] | None]


def clip_integers(model: ModelProto) -> None:
    """Move clips behind the QuantizeLinear that follows them, where they clip integers (in place).

    Rounding keeps order, so min(x, c) rounded is min(x rounded, c rounded). Ends that differ from channel to channel
    become Min and Max, the others one Clip, together with that of fewer than 8 bits.
    """
    graph = model.graph
    constants = _constants(model)
    for quantize in [n for n in graph.node if n.op_type == "QuantizeLinear"]:
        zero = constants[quantize.input[2]]
        info = np.iinfo(zero.dtype)
        limits = [int(info.min), int(info.max)]
        new: list[NodeProto] = []
        for clip, ends in _clips_before(model, quantize, constants):
            for op_type, end in zip(("Max", "Min"), ends, strict=True):
                if end is None:
                    continue
                integers = _quantize(end, constants[quantize.input[1]], zero, axis=0)
                if (integers == integers.flat[0]).all():
                    end_value = int(integers.flat[0])
                    limits = [max(limits[0], end_value), limits[1]] if op_type == "Max" else [limits[0], min(limits[1], end_value)]
                else:
                    name = f"{clip}_{op_type}"
                    graph.initializer.append(numpy_helper.from_array(integers, f"{name}_end"))
                    new.append(helper.make_node(op_type, ["", f"{name}_end"], [f"{name}_clipped"]))
        if limits != [info.min, info.max]:
            new += _clip(model, quantize, limits, zero.dtype, constants)
        _insert_behind(model, quantize, new)
    _drop_unread(model)


def _clips_before(model: ModelProto, quantize: NodeProto, constants: dict[str, NDArray[Any]]) -> list[tuple[str, Ends]]:
    """Take the clips that only this QuantizeLinear reads out of the graph: name, and least and greatest value; the last first."""
    graph = model.graph
    found: list[tuple[str, Ends]] = []
    while True:
        name = quantize.input[0]
        maker = next((n for n in graph.node if name in n.output), None)
        readers = sum(name in n.input for n in graph.node) + sum(name == o.name for o in graph.output)
        ends = None if maker is None or readers > 1 else _ends(maker, constants)
        if maker is None or ends is None:
            return found
        found.append((name, ends))
        quantize.input[0] = maker.input[0]
        graph.node.remove(maker)


def _ends(node: NodeProto, constants: dict[str, NDArray[Any]]) -> Ends | None:
    """The least and the greatest value that a clip lets through; None if the node is no clip between constants."""
    ends = list(node.input[1:])
    if any(end and end not in constants for end in ends):
        return None
    values = [constants[end] if end else None for end in ends]
    if node.op_type == "Relu":
        return np.zeros((), np.float32), None
    if node.op_type == "Clip":
        low, high = [*values, None, None][:2]
        return low, high
    if node.op_type in ("Min", "Max") and len(values) == 1:
        return (values[0], None) if node.op_type == "Max" else (None, values[0])
    return None


def _clip(model: ModelProto, quantize: NodeProto, limits: list[int], kind: Any, constants: dict[str, NDArray[Any]]) -> list[NodeProto]:
    """A Clip to these integers; none where one stands behind already, which then clips to both."""
    readers = [n for n in model.graph.node if quantize.output[0] in n.input]
    behind = readers[0] if len(readers) == 1 and readers[0].op_type == "Clip" else None
    if behind is not None:
        limits = [max(limits[0], int(constants[behind.input[1]])), min(limits[1], int(constants[behind.input[2]]))]
    names = [f"{quantize.output[0]}_{end}" for end in ("low", "high")]
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v, kind), n) for v, n in zip(limits, names, strict=True))
    if behind is not None:
        behind.input[1:] = names
        return []
    return [helper.make_node("Clip", ["", *names], [f"{quantize.output[0]}_clipped"])]


def _insert_behind(model: ModelProto, node: NodeProto, new: list[NodeProto]) -> None:
    """Put a chain of nodes behind a node's output, before all its readers."""
    graph = model.graph
    tail = node.output[0]
    for reader in graph.node if new else ():
        reader.input[:] = [new[-1].output[0] if name == tail else name for name in reader.input]
    for i, link in enumerate(new):
        link.input[0] = tail
        tail = link.output[0]
        graph.node.insert(list(graph.node).index(node) + 1 + i, link)


def _constants(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Initializers and the values of Constant nodes, by name."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return constants


def avoid_overflow(model: ModelProto) -> None:
    """Store weights as uint8 where a pair of products can exceed int16 (in place); see `zaq.export.onnx`.

    Not beside int8 activations: no kernel takes int8 x uint8.
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
        if constants[activation.input[2]].dtype == np.int8:
            continue
        if integers.dtype != np.int8 or 2 * largest * int(np.abs(integers.astype(np.int16)).max()) <= INT16_MAX:
            continue
        for name in (weight.input[0], weight.input[2]):
            shifted = (numpy_helper.to_array(tensors[name]).astype(np.int16) + 128).astype(np.uint8)
            tensors[name].CopyFrom(numpy_helper.from_array(shifted, name))


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


def _dequantize(q: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int) -> NDArray[Any]:
    """What DequantizeLinear computes."""
    scale, zero = _along(scale, axis, q.ndim), _along(zero, axis, q.ndim)
    x: NDArray[Any] = ((q.astype(np.float32) - zero) * scale).astype(np.float32)
    return x


def _one_zero_point(integers: NDArray[Any], zero: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights whose channels have different zero points as int8 around 0, or as int16 where 8 bits do not hold that.

    onnxruntime's QLinearConv takes one zero point a weight, whatever the file says.
    """
    if not zero.ndim or (zero == zero.flat[0]).all():
        return integers, zero
    shifted = integers.astype(np.int16) - _along(zero, axis, integers.ndim).astype(np.int16)
    kind = np.int8 if shifted.min() >= -128 and shifted.max() <= 127 else np.int16
    return shifted.astype(kind), np.zeros_like(zero, dtype=kind)


def _drop_unread(model: ModelProto) -> None:
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
