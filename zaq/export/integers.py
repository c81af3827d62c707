"""Rewrites of the ONNX file, in place: quantized constants become integer initializers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zaq.errors import SourceError

__all__ = [
    "Constants", "avoid_overflow", "constants_of", "drop_unread", "store_integers", "store_rounded", "to_integers",
]  # fmt: skip

INT16_MAX = 32767
FLOAT_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Constants = dict[str, NDArray[Any]]


def store_integers(model: ModelProto, float_biases: bool = False) -> None:
    """Fold Quantize(-Clip) of constants into integer initializers, and biases into int32 (in place).

    `float_biases`: those stay the floats they are, whole steps of s_x s_w all the same.
    """
    graph = model.graph
    constants = constants_of(model)
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
        integers = to_integers(weight, scale, zero_point, node.attribute[0].i)
        if len(chain) > 1 and chain[0] is not None:
            integers = integers.clip(*[constants[i] for i in chain[0].input[1:3]])
        # Initializers of their own, even of a shared weight: onnxruntime's x64quantprecision mode rewrites them in
        # place.
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
        steps = _steps(bias, scale)
        if not (np.abs(steps) < 2**31).all():
            raise SourceError(
                f"the bias {node.input[2]} is no 32-bit number in steps of its scales; the checkpoint is damaged."
            )
        added[name] = steps.astype(np.int32)
        added[f"{name}_scale"] = scale
        output = f"{name}_dequantized"
        new = helper.make_node("DequantizeLinear", [name, f"{name}_scale"], [output], output)
        if scale.ndim:
            new.attribute.append(helper.make_attribute("axis", 0))
        graph.node.insert(index, new)
        node.input[2] = output


def store_rounded(model: ModelProto) -> None:
    """Store float weights that are whole steps of 8 bits as those (in place; `quant.stored`): integers, a Cast and a
    Mul, which runtimes compute when they load the file. Not a bit of a weight changes; others stay as they are.
    """
    graph, constants = model.graph, constants_of(model)
    for index, node in reversed(list(enumerate(graph.node))):
        weight = constants.get(node.input[1]) if node.op_type in FLOAT_LAYERS else None
        found = weight is not None and weight.dtype == np.float32 and _whole_steps(weight)
        if not found:
            continue
        name = f"{node.output[0]}_weight"
        parts: Constants = {f"{name}_integers": found[0], f"{name}_scale": found[1]}
        graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in parts.items())
        integers, scale = parts
        graph.node.insert(index, helper.make_node("Mul", [f"{name}_steps", scale], [name]))
        graph.node.insert(index, helper.make_node("Cast", [integers], [f"{name}_steps"], to=TensorProto.FLOAT))
        node.input[1] = name
    drop_unread(model)


def _whole_steps(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """A weight's integers, and the scales of its channels shaped as to multiply them; None where it is no such thing,
    or would not be smaller."""
    for axis in range(min(2, weight.ndim)):
        scale = np.abs(weight).max(tuple(d for d in range(weight.ndim) if d != axis), keepdims=True) / np.float32(127)
        scale = np.where(scale > 0, scale, np.float32(1))
        steps = np.rint(weight / scale)
        if weight.size + 4 * scale.size < 4 * weight.size and bool((steps * scale == weight).all()):
            return steps.astype(np.int8), scale
    return None


def avoid_overflow(model: ModelProto) -> None:
    """Store weights as uint8 where a pair of products exceeds int16 (in place); see `zaq.export.onnx`.

    Not beside int8 activations: no kernel takes int8 x uint8. Depthwise kernels widen products before they add them.
    """
    constants = constants_of(model)
    tensors = {t.name: t for t in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not all(i in makers for i in node.input[:2]):
            continue
        activation, weight = makers[node.input[0]], makers[node.input[1]]
        if {activation.op_type, weight.op_type} != {"DequantizeLinear"} or weight.input[0] not in tensors:
            continue
        clip = makers.get(activation.input[0])
        largest = (
            int(numpy_helper.to_array(tensors[clip.input[2]])) if clip is not None and clip.op_type == "Clip" else 255
        )
        integers = numpy_helper.to_array(tensors[weight.input[0]])
        depthwise = next((a.i for a in node.attribute if a.name == "group"), 1) == len(integers) > 1
        if constants[activation.input[2]].dtype == np.int8 or depthwise:
            continue
        if (
            integers.dtype != np.int8
            or largest * _largest_pair(integers.T if node.op_type == "MatMul" else integers) <= INT16_MAX
        ):
            continue
        for name in (weight.input[0], weight.input[2]):
            shifted = (numpy_helper.to_array(tensors[name]).astype(np.int16) + 128).astype(np.uint8)
            tensors[name].CopyFrom(numpy_helper.from_array(shifted, name))


def _largest_pair(weight: NDArray[Any]) -> int:
    """The largest sum of two neighbours of one sign, in the two orders in which kernels lay a weight out."""
    orders = [weight.reshape(len(weight), -1)]
    if weight.ndim > 2:
        orders.append(np.moveaxis(weight, 1, -1).reshape(len(weight), -1))
    signed = [part for rows in orders for part in (rows.astype(np.int32).clip(0), (-rows.astype(np.int32)).clip(0))]
    return max(int((p[:, 1:] + p[:, :-1]).max()) if p.shape[1] > 1 else int(p.max()) for p in signed)


def constants_of(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Initializers and the values of Constant nodes, by name."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return constants


def _along(values: NDArray[Any], axis: int, dims: int) -> NDArray[Any]:
    """Values of each channel, shaped to broadcast along `axis`; a scalar as it is."""
    return values.reshape([-1 if d == axis else 1 for d in range(dims)]) if values.ndim else values


def _steps(x: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    """x in whole steps of a grid. Raises SourceError where that is no number."""
    with np.errstate(all="ignore"):
        steps: NDArray[Any] = np.rint(x / scale)
    if np.isnan(steps).any():
        raise SourceError("a weight, a bias or a scale is no number; the checkpoint is damaged.")
    return steps


def to_integers(x: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int) -> NDArray[Any]:
    """What QuantizeLinear computes."""
    scale, zero = _along(scale, axis, x.ndim), _along(zero, axis, x.ndim)
    info = np.iinfo(zero.dtype)
    q = _steps(x, scale) + zero
    integers: NDArray[Any] = q.clip(info.min, info.max).astype(zero.dtype)
    return integers


def _one_zero_point(integers: NDArray[Any], zero: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights whose channels have different zero points as int8 around 0, or as int16 where 8 bits do not hold that.

    onnxruntime's QLinearConv takes one zero point a weight, whatever the file says. (No kernel takes int16: such a
    layer, of a grid for comparison, computes in float. As floats its weight would be quantized anew, to int8, on load.)
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
