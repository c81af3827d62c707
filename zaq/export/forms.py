"""Stand-in until the real module is on main: the float network of a file, by taking its quantizers out."""

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from zaq.export.integers import _dequantize, _drop_unread

__all__ = ["to_float"]


def to_float(model: ModelProto) -> ModelProto:
    """The same network without quantizers; a ReLU stands where a quantizer's grid, which starts at 0, had replaced one."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "DequantizeLinear":
            continue
        source = node.input[0]
        while source in makers and makers[source].op_type in ("Clip", "Min", "Max", "Cast", "QuantizeLinear"):
            source = makers[source].input[0]
        scale, zero = tensors[node.input[1]], tensors[node.input[2]] if len(node.input) > 2 else np.zeros((), np.int32)
        if source in tensors:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            value = _dequantize(tensors[source].astype(np.int32), scale, zero.astype(np.int32), axis)
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            graph.node.remove(node)
        else:
            relu = zero.dtype == "uint8" and zero == 0 and source in makers and makers[source].op_type in ("Conv", "Add", "Gemm", "Mul")
            new = helper.make_node("Relu" if relu else "Identity", [source], list(node.output))
            graph.node.remove(node)
            graph.node.insert(index, new)
    _drop_unread(found)
    return found
