"""What onnx2torch (1.5) lacks: operations of later opsets, and sizes that torch.export can see through.

onnx2torch knows opsets up to 17, and keeps the sizes and axes that an operation is given as tensors, whose values
torch.export does not know. Here they are numbers, most of them read off the shapes that onnx infers. A later version of
an operation counts as the last one it knows where a file uses nothing of it that is new.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import defs
from onnx2torch import convert as to_torch
from onnx2torch.node_converters.reduce import OnnxReduceStaticAxes
from onnx2torch.node_converters.registry import _CONVERTER_REGISTRY as REGISTRY
from onnx2torch.node_converters.registry import OperationDescription, get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from zaq.sources.given import given, shape_of
from zaq.sources.places import PLACES
from zaq.sources.windows import average_pool, conv_transpose, max_pool, resize

__all__ = ["convert", "unconverted"]

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
LONGEST = 80  # characters of a name
Converter = Callable[[OnnxNode, OnnxGraph], nn.Module]


def unconverted(model: onnx.ModelProto) -> list[str]:
    """The operations of a model that there is no converter for, by name."""
    return sorted({f"{d.operation_type} (opset {d.version})" for d, found in _converters(model).items() if not found})


def _converters(model: onnx.ModelProto) -> dict[OperationDescription, Any]:
    """For each operation of a model, in the version it has there,
    the converter: ours or onnx2torch's; None for none."""
    table = REGISTRY | CONVERTERS
    opsets = {o.domain: o.version for o in model.opset_import}
    found: dict[OperationDescription, Any] = {}
    for node in model.graph.node:
        domain, name = node.domain, node.op_type
        schema = defs.get_schema(name, opsets[domain], domain)
        known = [d.version for d in table if d[:2] == (domain, name) and d.version <= schema.since_version]
        before = defs.get_schema(name, max(known), domain) if known else None
        converter = None
        if before is not None and _alike(node, schema, before):
            converter = table[OperationDescription(domain, name, before.since_version)]
        key = OperationDescription(domain, name, schema.since_version)
        found[key] = converter and found.get(key, converter)
    return found


def _alike(node: onnx.NodeProto, now: defs.OpSchema, before: defs.OpSchema) -> bool:
    """Whether what a node says means the same in two versions of its operation."""
    count = len(node.input)
    if [i.name for i in now.inputs][:count] != [i.name for i in before.inputs][:count]:
        return False
    new = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name not in before.attributes}
    return all(value == _neutral(now, name, value) for name, value in new.items())


def _neutral(schema: defs.OpSchema, name: str, value: Any) -> Any:
    """What an attribute does nothing with."""
    if name == "dilations":
        return [1] * len(value)
    default = schema.attributes[name].default_value
    return onnx.helper.get_attribute_value(default) if default.name else None


def convert(model: onnx.ModelProto, batch: int) -> GraphModule:
    """The module of a model whose shapes were computed for a batch of `batch`, for a batch of any size. Its parts are
    called as the nodes are, as far as their names are letters, digits and underscores.
    """
    Sized.batch = batch
    with _registered(REGISTRY | CONVERTERS | _converters(model)):
        gm: GraphModule = to_torch(_renamed(model))
    image = next(n for n in gm.graph.nodes if n.op == "placeholder")
    for node in list(gm.graph.nodes):
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Expand):
            node.args = (node.args[0], image)
        elif isinstance(module, nn.Linear) and module.bias is None:
            _take_bias(gm, node, module)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


@contextmanager
def _registered(table: dict[OperationDescription, Any]) -> Iterator[None]:
    """Inside, onnx2torch has these converters; outside, and for whoever else uses it, its own."""
    theirs = dict(REGISTRY)
    REGISTRY.update(table)
    try:
        yield
    finally:
        REGISTRY.clear()
        REGISTRY.update(theirs)


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with other names for its nodes: what a node is called becomes an attribute, which torch.fx pastes into
    the source that it compiles.
    """
    copy, taken = onnx.ModelProto(), {"initializers", "meta", *dir(nn.Module()), *dir(GraphModule)}
    copy.CopyFrom(model)
    for index, node in enumerate(copy.graph.node):
        name = re.sub(r"\W+", "_", node.name or node.op_type, flags=re.ASCII).strip("_")[:LONGEST]
        node.name = name if name and name not in taken else f"{name}_{index}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)
    return copy


def _take_bias(gm: GraphModule, node: Node, layer: nn.Linear) -> None:
    """The bias of a linear layer that ONNX has as MatMul and Add."""
    user = next(iter(node.users))
    if (
        len(node.users) > 1
        or user.op != "call_module"
        or len(user.args) != 2
        or "Add" not in str(gm.get_submodule(str(user.target)))
    ):
        return
    (other,) = [a for a in user.args if a is not node] or [None]
    value = gm.get_buffer(str(other.target)) if isinstance(other, Node) and other.op == "get_attr" else None
    if value is not None and value.shape == (layer.out_features,):
        layer.bias = nn.Parameter(value)
        user.replace_all_uses_with(node)
        gm.graph.erase_node(user)


class Sized(nn.Module):
    """An operation that is told the shape of its result, with `batch` in it where the batch is."""

    batch = 0

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = [-1 if s % self.batch == 0 else s for s in sizes]
        if self.sizes.count(-1) > 1:
            raise NotImplementedError(f"a result of shape {sizes}, in which the batch appears twice")


class Reshape(Sized):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.sizes)


class Expand(Sized):
    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return x.expand([image.shape[0] if s == -1 else s for s in self.sizes])


class Slice(nn.Module):
    def __init__(self, cuts: dict[int, slice]) -> None:
        super().__init__()
        self.cuts = cuts

    def forward(self, x: Tensor) -> Tensor:
        return x[tuple(self.cuts.get(i, self.cuts.get(i - x.dim(), slice(None))) for i in range(x.dim()))]


class Split(nn.Module):
    def __init__(self, sizes: list[int], axis: int) -> None:
        super().__init__()
        self.sizes, self.axis = sizes, axis

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, self.sizes, self.axis)


class Select(nn.Module):
    def __init__(self, axis: int, index: int) -> None:
        super().__init__()
        self.axis, self.index = axis, index

    def forward(self, x: Tensor) -> Tensor:
        return x.select(self.axis, self.index)


class Pad(nn.Module):
    def __init__(self, amounts: dict[int, tuple[int, int]], mode: str, value: float) -> None:
        super().__init__()
        self.amounts, self.mode, self.value = amounts, mode, value

    def forward(self, x: Tensor) -> Tensor:
        pairs = [self.amounts.get(i, self.amounts.get(i - x.dim(), (0, 0))) for i in range(x.dim())]
        while len(pairs) > 1 and pairs[0] == (0, 0):
            pairs.pop(0)
        return F.pad(
            x, [a for pair in reversed(pairs) for a in pair], self.mode, self.value if self.mode == "constant" else None
        )


def _reshape(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Reshape(shape_of(graph, node.output_values[0]))


def _expand(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Expand(shape_of(graph, node.output_values[0]))


def _slice(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    starts, ends = given(node, graph, 1, "starts"), given(node, graph, 2, "ends")
    axes, steps = given(node, graph, 3, "axes", range(len(starts))), given(node, graph, 4, "steps", [1] * len(starts))
    if min(steps) < 0:
        raise NotImplementedError("Slice that steps backwards")
    return Slice({a: slice(*cut) for a, *cut in zip(axes, starts, ends, steps, strict=True)})


def _split(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axis = node.attributes.get("axis", 0)
    return Split([shape_of(graph, name)[axis] for name in node.output_values], axis)


def _pad(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    pads = given(node, graph, 1, "pads")
    axes, half = given(node, graph, 3, default=range(len(pads) // 2)), len(pads) // 2
    amounts = dict(zip(axes, zip(pads[:half], pads[half:], strict=True), strict=True))
    value = given(node, graph, 2, "value", 0.0)
    return Pad(
        amounts, PAD_MODES[node.attributes.get("mode", "constant")], value[0] if isinstance(value, list) else value
    )


def _reduce(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axes = given(node, graph, 1)
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return nn.Identity()
    return OnnxReduceStaticAxes(node.operation_type, axes, node.attributes.get("keepdims", 1))  # type: ignore[no-any-return]


def _gather(node: OnnxNode, graph: OnnxGraph) -> nn.Module | None:
    try:
        index = given(node, graph, 1)
    except NotImplementedError:
        return None
    return Select(node.attributes.get("axis", 0), index) if isinstance(index, int) else None


def _matmul(node: OnnxNode, graph: OnnxGraph) -> nn.Module | None:
    """A product with a matrix that is stored is a linear layer."""
    stored = graph.initializers.get(node.input_values[1])
    weight = stored.to_torch() if stored is not None else None
    if weight is None or weight.dim() != 2:
        return None
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
    layer.weight = nn.Parameter(weight.T.contiguous())
    return layer


def _gelu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return nn.GELU(approximate=node.attributes.get("approximate", "none"))


# Converters that read the first input alone, and those of MORE every input that is no constant. One that returns None
# leaves the node to onnx2torch's own.
OURS: dict[str, Converter | Callable[[OnnxNode, OnnxGraph], nn.Module | None]] = {
    "Reshape": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape, "Flatten": _reshape, "Expand": _expand,
    "Slice": _slice,
    "Split": _split, "Pad": _pad, "Resize": resize, "Upsample": resize, "Gather": _gather, "MatMul": _matmul,
    "Gelu": _gelu,
    "MaxPool": max_pool, "AveragePool": average_pool, "ConvTranspose": conv_transpose, **PLACES,
}  # fmt: skip
MORE = {"GridSample"}
REDUCTIONS = {
    f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}


def _converter(schema: defs.OpSchema, make: Any) -> Any:
    """A converter as onnx2torch's registry holds them; what ours leaves alone is theirs."""
    theirs = REGISTRY.get(OperationDescription(schema.domain, schema.name, schema.since_version))

    def converter(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
        module = make(node, graph)
        if module is not None:
            read = [i for i in node.input_values[1:] if node.operation_type in MORE and i not in graph.initializers]
            return OperationConverterResult(module, OnnxMapping((node.input_values[0], *read), node.output_values))
        return (theirs or get_converter(node.operation_type, schema.since_version - 1))(node, graph)

    return converter


CONVERTERS = {
    OperationDescription(schema.domain, schema.name, schema.since_version): _converter(
        schema, OURS.get(schema.name, _reduce)
    )
    for schema in defs.get_all_schemas_with_history()
    if schema.domain == "" and (schema.name in OURS or (schema.name in REDUCTIONS and schema.since_version >= 18))
}
