"""What a node of an ONNX graph is told, as numbers: shapes, and inputs that are constants."""

from typing import Any

from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import get_const_value
from torch import Tensor

__all__ = ["given", "shape_of"]


def shape_of(graph: OnnxGraph, name: str) -> list[int]:
    """The shape of a value. Raises NotImplementedError where it depends on other values."""
    if name in graph.initializers:
        return list(graph.initializers[name].to_torch().shape)
    known = graph.value_info.get(name)
    dims = known.type.tensor_type.shape.dim if known is not None and known.type.tensor_type.HasField("shape") else None
    if dims is None or not all(d.dim_value for d in dims):
        raise NotImplementedError(f"the shape of {name!r} depends on values")
    return [d.dim_value for d in dims]


def given(node: OnnxNode, graph: OnnxGraph, index: int, name: str = "", default: Any = None) -> Any:
    """What an operation is told, as an input or (before opset 13 or so) as an attribute, as numbers."""
    if name and name in node.attributes:
        return node.attributes[name]
    if len(node.input_values) <= index or not node.input_values[index]:
        return default
    try:
        value = get_const_value(node.input_values[index], graph)
    except KeyError as error:
        raise NotImplementedError(
            f"{node.operation_type} that is told {node.input_values[index]!r} by values"
        ) from error
    return value.tolist() if isinstance(value, Tensor) else value
