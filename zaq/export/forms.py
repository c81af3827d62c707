"""The forms an exported model takes, all of the same numbers.

| form        | what it is                                                                     | lowest opset |
|-------------|--------------------------------------------------------------------------------|--------------|
| `qdq`       | float operations between pairs of quantizers, which runtimes fuse; a Clip below 8 bits | 19 (13) |
| `packed`    | the same with weights of 4 bits and fewer as INT4, from opset 25 on those of 2 as INT2, | 21 |
|             | which a Cast unpacks at load time                                              |              |
| `qoperator` | QLinearConv and its like, with onnxruntime's own operators (com.microsoft) where ONNX has none | 13 |
| `ort`       | the qoperator form in onnxruntime's format for mobile builds                   | 13 |
| `float`     | the equalized, trained network without quantizers                              | 13 |

The qdq form is valid from opset 13 on (with GELU from 20); unasked it declares 19, the first that onnx's own reference
evaluator runs.
An INT4 DequantizeLinear straight into a convolution would run in float (a third as fast as the float model); behind a
Cast it is folded into an INT8 weight, and the kernels stay integer.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from zaq.config.files import scratch
from zaq.errors import BitsError, SourceError, unknown
from zaq.export.integers import drop_unread

__all__ = ["FORMS", "LOWEST_OPSET", "lower_opset", "optimized", "pack", "require_form", "strip"]

FORMS = ("qdq", "packed", "qoperator", "ort", "float")
LOWEST_OPSET = {"qdq": 19, "packed": 21}  # what is declared unasked; the others: whatever they can do with
PER_CHANNEL = 13  # the first opset with a scale for each channel
# Of a kind of integers the smaller ones, the smallest first: bits, and the opset from which they exist.
PACKABLE = {
    TensorProto.INT8: (("INT2", 2, 25), ("INT4", 4, 21)),
    TensorProto.UINT8: (("UINT2", 2, 25), ("UINT4", 4, 21)),
}


def require_form(form: str) -> None:
    """Raises BitsError for a form that does not exist."""
    if form not in FORMS:
        raise BitsError("format: " + unknown("form", form, FORMS))


def strip(model: ModelProto) -> None:
    """Take every Quantize(-Clip)-Dequantize out (in place), before anything is stored as integers."""
    graph = model.graph
    makers = {o: n for n in graph.node for o in n.output}
    replaced: dict[str, str] = {}
    for last in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
        first = last
        while first.op_type != "QuantizeLinear":
            first = makers[first.input[0]]
        replaced[last.output[0]] = first.input[0]
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        node.input[:] = [_through(replaced, name) for name in node.input]
    for name in outputs.intersection(replaced):  # an output that was quantized
        graph.node.append(helper.make_node("Identity", [_through(replaced, name)], [name]))
        graph.node.remove(makers[name])
    drop_unread(model)


def _through(replaced: dict[str, str], name: str) -> str:
    while name in replaced:
        name = replaced[name]
    return name


def pack(model: ModelProto, opset: int | None = None) -> None:
    """Store weights of 4 bits and fewer as INT4 or UINT4, or as INT2 where an opset is asked for that has it, and cast
    them on load (in place). Raises BitsError if there are none.
    """
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    packed = False
    for index, node in reversed(list(enumerate(graph.node))):
        weight = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type not in PACKABLE:
            continue
        values = numpy_helper.to_array(weight)
        least = max(opset or 0, LOWEST_OPSET["packed"])  # an older one is refused when it is declared
        kinds = [kind for kind in PACKABLE[weight.data_type] if kind[2] <= least and _holds(kind[1], values)]
        if not kinds:
            continue
        kind, bits, _ = kinds[0]
        name, unpacked, eight = weight.name, f"{weight.name}_int8", weight.data_type
        raw = _in_bits(values, bits)
        weight.CopyFrom(
            TensorProto(name=name, data_type=TensorProto.DataType.Value(kind), dims=values.shape, raw_data=raw)
        )
        node.input[0] = unpacked
        graph.node.insert(index, helper.make_node("Cast", [name], [unpacked], to=eight))
        packed = True
    if not packed:
        raise BitsError(
            "format packed: holds weights of 4 bits and fewer, and this model has none; choose --format qdq."
        )


def _holds(bits: int, values: NDArray[Any]) -> bool:
    """Whether integers of so few bits, with a sign as these have it, are all of these values."""
    low = 0 if values.dtype == np.uint8 else -(2 ** (bits - 1))
    return bool(values.min() >= low and values.max() < low + 2**bits)


def _in_bits(values: NDArray[Any], bits: int) -> bytes:
    """Integers in so many bits each, the first in the lowest bits of a byte, as ONNX has them."""
    each = 8 // bits
    low = values.astype(np.uint8).reshape(-1) & (2**bits - 1)
    parts = np.append(low, np.zeros(-low.size % each, np.uint8)).reshape(-1, each)
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    return bytes(np.bitwise_or.reduce(parts << shifts, axis=1).astype(np.uint8).tobytes())


def optimized(model: ModelProto, to_ort: bool = False) -> bytes:
    """The model as onnxruntime fuses it (QLinearConv, QLinearAdd, QGemm, ...), as ONNX or in its own format.

    Only rewrites that hold on every processor: level "extended", not the layouts of this one.
    """
    with scratch() as folder:
        path = folder / "model"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.save_model_format", "ORT" if to_ort else "ONNX")
        options.add_session_config_entry("session.qdqisint8allowed", "1")  # as in zaq.export.session
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        content = path.read_bytes()
    return content if to_ort else _only_used_domains(content)


def _only_used_domains(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    used = {n.domain for n in model.graph.node} | {""}
    kept = [i for i in model.opset_import if i.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return bytes(model.SerializeToString())


def lower_opset(model: ModelProto, form: str, opset: int | None = None, theirs: int | None = None) -> None:
    """Declare the lowest opset at which every node of the file is what it is here, or the one asked for (in place);
    unasked the source's, `theirs`, where the file is valid at it.

    Raises SourceError for an opset that the file's operations do not exist in.
    """
    highest = onnx.defs.onnx_opset_version()
    if opset is not None and opset > highest:
        raise SourceError(f"opset {opset}: the onnx installed here ends at {highest}.")
    first = next((v for v in range(PER_CHANNEL, highest + 1) if _declared(model, v)), highest)
    if opset is not None and opset < first:
        raise SourceError(f"opset {opset}: this model in the form {form!r} needs {first} or later.")
    kept = theirs if theirs is not None and first <= theirs <= highest else max(first, LOWEST_OPSET.get(form, first))
    _stamp(model, opset or kept)


def _declared(model: ModelProto, opset: int) -> bool:
    """Whether the file is valid at an opset: names, attributes, number of inputs, types."""
    candidate = ModelProto()
    candidate.CopyFrom(model)
    _stamp(candidate, opset)
    try:
        onnx.checker.check_model(candidate, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _stamp(model: ModelProto, opset: int) -> None:
    others = [(i.domain, i.version) for i in model.opset_import if i.domain]
    imports: Iterable[tuple[str, int]] = [("", opset), *others]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*i) for i in imports)
    model.ir_version = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
