"""What an ONNX file costs where it runs: bytes by part, multiply-accumulates, memory, and energy as an estimate.

Everything is counted for one sample on the graph that onnxruntime makes of the file (its fusions, before layouts that
depend on the machine), so that a pair of quantizers around a convolution counts as the integer kernel it becomes, and
what is left in float counts as float.

Memory: a kernel reads its inputs and writes buffers of its own; a buffer lives from the kernel that writes it to the
last that reads it; views (Reshape, ...) and element-by-element kernels (Relu, Clip, ...) that are the last to read what
they read write nothing new. The peak is the largest sum of live buffers, the input in float and the outputs included,
weights and the kernels' own scratch space not. Elements have the size of their type: 1 byte also below 8 bits.

Energy: a multiply-accumulate is a product and a sum in its type (8-bit products are summed in int32, and bits below 8
are computed in 8); each activation goes to SRAM when it is written and each time a kernel reads it; each parameter
comes from DRAM once, weights at the bits they need. What is no multiply-accumulate counts by the memory it moves alone.
"""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zaq.errors import RunError, SourceError
from zaq.export.ends import declare
from zaq.export.forms import optimized
from zaq.sources.frame import network_of

__all__ = ["PICOJOULES", "SOURCE", "Deployment", "costs", "deployment", "forms_of", "report", "table"]

SOURCE = "M. Horowitz, Computing's Energy Problem, ISSCC 2014 (45 nm, 0.9 V), in part tabulated by Han et al. 2015"
PICOJOULES = {
    "int8 mult": 0.2,
    "int32 add": 0.1,
    "float mult": 3.7,
    "float add": 0.9,
    "32-bit SRAM access": 5.0,
    "32-bit DRAM access": 640.0,
}

# Where an operation holds its weight, and where its bias: the operations that multiply and accumulate.
LAYERS = {
    "Conv": (1, 2),
    "FusedConv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "FusedGemm": (1, 2),
    "MatMul": (1, None),
    "FusedMatMul": (1, None),
    "MatMulNBits": (1, None),
    "ConvInteger": (1, None),
    "MatMulInteger": (1, None),
    "MatMulIntegerToFloat": (1, 6),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3, None),
    "QGemm": (3, 6),
}
VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
IN_PLACE = {
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Max",
    "Min",
    "QLinearLeakyRelu",
    "QLinearSigmoid",
    "Relu",
    "Sigmoid",
    "Tanh",
}
PASSED = {
    "Cast",
    "DequantizeLinear",
    "Identity",
    "Mul",
    "Reshape",
    "Transpose",
    "Unsqueeze",
}  # what may lie between a constant and its layer
BYTE = (np.dtype(np.int8), np.dtype(np.uint8))
Values = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shape and type of every tensor by its name


@dataclass(frozen=True)
class Deployment:
    """What one file costs: bytes, operations and memory for one sample, and microjoules by the figures of `SOURCE`."""

    file: int
    weights: int  # as stored in this file
    packed: int  # the weights, each at the bits that its integers need
    biases: int
    scales: int  # and zero points
    graph: int  # the rest of the file
    macs: int
    integer_macs: int
    peak: int  # bytes of activations alive at once
    traffic: int  # bytes of activations written and read
    energy_macs: float
    energy_sram: float
    energy_dram: float

    @property
    def energy(self) -> float:
        """Microjoules a sample."""
        return self.energy_macs + self.energy_sram + self.energy_dram

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        share = f"{100 * self.integer_macs / self.macs:.0f} %" if self.macs else "none"
        return (
            f"{self.file / 1024:.0f} KB, {self.weights / 1024:.0f} of them weights ({self.packed / 1024:.0f} at their "
            "bits); "
            f"{self.macs / 1e6:.1f} M multiply-accumulates, {share} in integers; at most {self.peak / 1024:.0f} KB of "
            "activations; "
            f"about {self.energy:.0f} microjoules a sample at 45 nm"
        )


def table(found: dict[str, Deployment]) -> list[list[str]]:
    """Rows of text, a column a file; the first row is the head."""
    kilo, mega = (lambda v: f"{v / 1024:.1f}"), (lambda v: f"{v / 1e6:.2f}")
    rows: list[tuple[str, Any, Any]] = [
        ("file, KB", kilo, lambda d: d.file),
        ("  weights", kilo, lambda d: d.weights),
        ("  biases", kilo, lambda d: d.biases),
        ("  scales and zero points", kilo, lambda d: d.scales),
        ("  graph", kilo, lambda d: d.graph),
        ("weights at their bits, KB", kilo, lambda d: d.packed),
        ("multiply-accumulates, M", mega, lambda d: d.macs),
        ("  in integers", mega, lambda d: d.integer_macs),
        ("activations, peak KB", kilo, lambda d: d.peak),
        ("energy estimate, uJ", "{:.1f}".format, lambda d: d.energy),
        ("  multiply-accumulates", "{:.1f}".format, lambda d: d.energy_macs),
        ("  activations, SRAM", "{:.1f}".format, lambda d: d.energy_sram),
        ("  parameters, DRAM", "{:.1f}".format, lambda d: d.energy_dram),
    ]
    return [["a sample", *found], *([name, *(text(value(d)) for d in found.values())] for name, text, value in rows)]


def forms_of(path: Path) -> list[Path]:
    """Every form of a run's file that lies beside it, itself first: model.onnx, model.packed.onnx, ..."""
    return sorted(
        {path, *path.parent.glob(f"{path.stem}.*.onnx")} - {path.parent / "model.float.onnx"},
        key=lambda p: (p != path, p.name),
    )


def costs(plain: bytes, path: Path, image: tuple[int, ...] = ()) -> dict[str, Deployment]:
    """The float form of a run's file, and every other form that lies there, by name; `image` is (C, H, W) of what they
    cost for, where they take any size. Raises SourceError for what is none.
    """
    return {"float": deployment(plain, image), **{p.name: deployment(p, image) for p in forms_of(path)}}


def report(found: dict[str, Deployment]) -> dict[str, Any]:
    """Costs as they go into report.json: with the figures of energy, and where those are from."""
    return {"source": SOURCE, "picojoules": PICOJOULES, "files": {name: d.to_dict() for name, d in found.items()}}


def deployment(file: Path | bytes, image: tuple[int, ...] = ()) -> Deployment:
    """The costs of an ONNX file, for an `image` of (C, H, W) where it takes any size. Raises SourceError if onnxruntime
    cannot load it.
    """
    content = network_of(file if isinstance(file, bytes) else file.read_bytes())
    fused = _optimized(content, image, "the model" if isinstance(file, bytes) else str(file))
    model = onnx.load_model_from_string(content)
    values = _values(fused)
    parts = _bytes(model.graph)
    macs, integer_macs = _macs(fused.graph, values)
    peak, traffic = _memory(fused.graph, {k: math.prod(shape) * kind.itemsize for k, (shape, kind) in values.items()})
    pj = PICOJOULES
    floats = (macs - integer_macs) * (pj["float mult"] + pj["float add"])
    moved = parts["packed"] + parts["biases"] + parts["scales"]
    return Deployment(
        file=len(content),
        **parts,
        graph=len(content) - parts["weights"] - parts["biases"] - parts["scales"],
        macs=macs,
        integer_macs=integer_macs,
        peak=peak,
        traffic=traffic,
        energy_macs=(integer_macs * (pj["int8 mult"] + pj["int32 add"]) + floats) / 1e6,
        energy_sram=traffic / 4 * pj["32-bit SRAM access"] / 1e6,
        energy_dram=moved / 4 * pj["32-bit DRAM access"] / 1e6,
    )


def _optimized(content: bytes, image: tuple[int, ...], name: str) -> ModelProto:
    """The graph that onnxruntime runs for one sample."""
    try:
        model = onnx.load_model_from_string(content)
        declare(model, 1, image)
        return onnx.load_model_from_string(optimized(model))
    except RunError:  # of a full disk: the model is well
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{name}: onnxruntime cannot load it: {reason}") from error


def _values(fused: ModelProto) -> Values:
    """Every tensor's shape and type, by running the graph once: onnx infers none for onnxruntime's own operations."""
    model = copy.deepcopy(fused)
    graph = model.graph
    names = list(dict.fromkeys(name for node in graph.node for name in node.output if name))
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in graph.input}
    feed = {i.name: np.zeros([d.dim_value for d in i.type.tensor_type.shape.dim], kinds[i.name]) for i in graph.input}
    arrays = feed | dict(zip(names, run.run(names, feed), strict=True))
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def _bytes(graph: GraphProto) -> dict[str, int]:
    """Bytes of the constants by what they are for; a constant that is read twice counts once."""
    tensors = {t.name: t for t in graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    makers = {output: node for node in graph.node for output in node.output}
    weights, biases, scales = set[str](), set[str](), set[str]()

    def root(name: str) -> str:
        while name not in tensors and name in makers and makers[name].op_type in PASSED:
            name = makers[name].input[0]
        return name

    for node in graph.node:
        weight, bias = LAYERS.get(node.op_type, (None, None))
        for index, name in enumerate(map(root, node.input)):
            if name not in tensors:
                continue
            if index == weight:
                weights.add(name)
            elif index == bias:
                biases.add(name)
            elif _holds_scale(node, index) and len(tensors[name].dims) < 2:
                scales.add(name)
    biases -= weights
    scales -= weights | biases
    sizes = {
        part: sum(_stored(tensors[n]) for n in names)
        for part, names in (("weights", weights), ("biases", biases), ("scales", scales))
    }
    return sizes | {"packed": sum(_packed(tensors[n]) for n in weights)}


def _holds_scale(node: NodeProto, index: int) -> bool:
    """Whether what an operation reads there is a scale or a zero point, if it is a constant."""
    return (node.op_type in ("QuantizeLinear", "DequantizeLinear") and index > 0) or node.op_type.startswith(
        ("QLinear", "QGemm")
    )


def _stored(tensor: TensorProto) -> int:
    elements: int = math.prod(tensor.dims)
    kind = TensorProto.DataType.Name(tensor.data_type)
    bits = int(kind[-1]) if kind.endswith(("INT2", "INT4")) else 8 * numpy_helper.to_array(tensor).itemsize
    return -(-elements * bits // 8)


def _packed(tensor: TensorProto) -> int:
    """Bytes at the fewest bits that tell the tensor's integers apart; floats as they are."""
    elements: int = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE) or not elements:
        return _stored(tensor)
    integers = numpy_helper.to_array(tensor).astype(np.int64)
    bits = max(int(integers.max() - integers.min()).bit_length(), 1)
    return -(-elements * bits // 8)


def _macs(graph: GraphProto, values: Values) -> tuple[int, int]:
    """Multiply-accumulates, and how many of them are of 8-bit integers."""
    shapes = {t.name: tuple(t.dims) for t in graph.initializer} | {name: shape for name, (shape, _) in values.items()}
    found, integer = 0, 0
    for node in graph.node:
        if node.op_type not in LAYERS:
            continue
        read, written, weight = (
            shapes[n] for n in (node.input[0], node.output[0], node.input[LAYERS[node.op_type][0]])
        )
        if "Conv" in node.op_type:  # a transposed one works at its input's positions
            macs = math.prod(read if node.op_type == "ConvTranspose" else written) * math.prod(weight[1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            macs = math.prod(written) * read[-2 if transposed else -1]
        found += macs
        if node.input[0] in values and values[node.input[0]][1] in BYTE:
            integer += macs
    return found, integer


def _memory(graph: GraphProto, sizes: dict[str, int]) -> tuple[int, int]:
    """The peak of live bytes, and all bytes written and read; the model is the head of this file's."""
    last = {name: step for step, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: len(graph.node) for value in graph.output}
    buffer = {
        value.name: value.name for value in graph.input if value.name in sizes
    }  # tensor -> the first that lay there
    born, end = dict.fromkeys(buffer, 0), {name: last.get(name, 0) for name in buffer}
    traffic = 0
    for step, node in enumerate(graph.node):
        read = [name for name in node.input if name in buffer]
        if node.op_type not in VIEWS:
            traffic += sum(sizes[name] for name in {*read, *node.output} if name)
        for name in filter(None, node.output):
            under = buffer[read[0]] if read else ""
            ends_here = bool(under) and end[under] == step and sizes[under] == sizes[name]
            own = not (under and node.op_type in VIEWS) and not (node.op_type in IN_PLACE and ends_here)
            at = buffer[name] = name if own else under
            born.setdefault(at, step)
            end[at] = max(end.get(at, 0), last.get(name, step))
    peak = max((sum(sizes[b] for b in born if born[b] <= step <= end[b]) for step in range(len(graph.node))), default=0)
    return peak, traffic
