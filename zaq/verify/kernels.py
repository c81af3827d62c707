"""Which kernels onnxruntime runs, after its own optimisation; which of them compute in float, and why."""

import collections
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto

from zaq.config.files import scratch
from zaq.export.session import session

__all__ = ["FloatNode", "Kernels", "kernels"]

# Operations with an integer kernel in onnxruntime, and what is no more than a copy on integers.
INTEGER = {"Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "Mul"}
WEIGHTED = {"Conv", "FusedConv", "Gemm", "MatMul"}
CLAMPS = {"Clip", "Max", "MaxPool", "Min", "Pad", "Relu", "Resize"}
MOVES = {
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
WITHOUT = {
    "BatchNormalization", "ConvTranspose", "Elu", "Erf", "FusedConv", "Gelu", "GroupNormalization", "HardSigmoid",
    "HardSwish",
    "InstanceNormalization", "LayerNormalization", "LRN", "PRelu", "QuickGelu", "ReduceMean", "Sigmoid", "Softmax",
    "Tanh",
}  # fmt: skip


@dataclass(frozen=True)
class FloatNode:
    """An operation that computes in float between quantized tensors."""

    op: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} {self.name}: {self.why}"


@dataclass(frozen=True)
class Kernels:
    """counts: operation -> how often; in_float: what computes in float where an integer kernel was to be had or wished
    for.
    """

    counts: dict[str, int]
    in_float: list[FloatNode]


def kernels(model: Path | bytes) -> Kernels:
    """Load a file and look at the graph that is run. Raises SourceError for a file that cannot be read."""
    with scratch() as folder:
        optimized = folder / "optimized.onnx"
        session(model, optimized=optimized)
        graph = onnx.load(optimized).graph
    counts = collections.Counter(n.op_type for n in graph.node)
    return Kernels(dict(counts.most_common()), _in_float(graph))


def _in_float(graph: GraphProto) -> list[FloatNode]:
    makers = {o: n for n in graph.node for o in n.output}
    readers = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    integers: set[str] = set()
    data = {graph.input[0].name}  # what depends on the image
    found = []
    for node in graph.node:
        if not data.intersection(node.input) or node.op_type == "Shape":
            continue
        data.update(node.output)
        if (
            node.op_type == "QuantizeLinear"
            or node.op_type.startswith("QLinear")
            or (node.op_type == "QGemm" and len(node.input) > 7)
        ):
            integers.update(node.output)
        elif node.op_type in MOVES | CLAMPS | INTEGER and integers.intersection(node.input):
            integers.update(node.output)  # on integers, whatever it is
        elif node.op_type in CLAMPS | INTEGER | WITHOUT and _after_integers(node, makers, integers):
            found.append(FloatNode(node.op_type, node.name, _why(node, makers, readers, data)))
    return found


def _after_integers(node: NodeProto, makers: dict[str, NodeProto], integers: set[str]) -> bool:
    """Whether anything behind the first quantizer leads to this node."""
    seen, todo = set[str](), list(node.input)
    while todo:
        name = todo.pop()
        if name in integers:
            return True
        if name not in seen and name in makers:
            seen.add(name)
            todo += makers[name].input
    return False


def _why(node: NodeProto, makers: dict[str, NodeProto], readers: dict[str, list[NodeProto]], data: set[str]) -> str:
    if node.op_type in WITHOUT - WEIGHTED:
        return "onnxruntime has no integer kernel for it"
    if node.op_type in WEIGHTED and (
        node.input[1] not in makers or makers[node.input[1]].op_type != "DequantizeLinear"
    ):
        return "its weight has no 8-bit integer form"
    for name in node.input:
        if name in data and (name not in makers or makers[name].op_type != "DequantizeLinear"):
            return f"it reads {name}, which nothing quantizes"
    if {r.op_type for o in node.output for r in readers[o]} != {"QuantizeLinear"}:
        return f"it writes {node.output[0]}, which nothing quantizes"
    return "onnxruntime does not fuse it"
