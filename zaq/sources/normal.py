"""One spelling for what ONNX files write in many: whatever wrote a file, behind this it looks like the others.

Weights lie in initializers and nowhere else; opsets are 13 and later; what does nothing is gone; everything that is
computed in half or double precision is computed in float32, and Casts stand at the ends where a file takes or gives
something else; a size that is not positive is open.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter
from onnx_ir.passes import Sequential, common

from zaq.sources.interface import opset_of

__all__ = ["FLOATS", "HALVES", "OPSET", "normalised"]

OPSET = 13  # the first that onnx2torch and our converters know well; older files are converted to it
HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
FLOATS = HALVES | {TensorProto.FLOAT}


def normalised(model: ModelProto) -> ModelProto:
    """The same network in the one spelling, of the same inputs and outputs.

    Raises ValidationError for a model that is none, and ValueError or RuntimeError where onnx_ir cannot read it.
    """
    model = _passed(model)
    _give_roi(model)
    _open_sizes(model)
    onnx.checker.check_model(model)
    model = _later(model)
    _in_float32(model)
    _pass_dropouts(model)
    return _passed(model)


def _passed(model: ModelProto) -> ModelProto:
    """Through onnx_ir's passes: functions inlined, constants lifted, what nobody reads and what does nothing gone."""
    old = model.ir_version
    done = Sequential(
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveInitializersFromInputsPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.NameFixPass(),
    )(ir.from_proto(model))
    result: ModelProto = ir.to_proto(done.model)
    result.ir_version = max(old, 4)  # from 4 on an initializer need not be an input as well
    return result


def _give_roi(model: ModelProto) -> None:
    """A Resize of opset 11 must have a `roi`, though nothing reads it; exporters leave its name empty."""
    for node in model.graph.node:
        if node.op_type == "Resize" and len(node.input) > 2 and not node.input[1]:
            if not any(t.name == "zaq_no_roi" for t in model.graph.initializer):
                model.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.float32), "zaq_no_roi"))
            node.input[1] = "zaq_no_roi"


def _open_sizes(model: ModelProto) -> None:
    """Sizes of -1 and 0 are open; outputs that say no sizes have those that follow from the inputs."""
    if not all(o.type.tensor_type.HasField("shape") for o in model.graph.output):
        model.graph.CopyFrom(onnx.shape_inference.infer_shapes(model).graph)
    for value in [*model.graph.input, *model.graph.output]:
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.Clear()
                dim.dim_param = f"{value.name}_{index}"


def _later(model: ModelProto) -> ModelProto:
    """The model at opset 13, if it is older and onnx can convert it; else as it is."""
    opset = opset_of(model) or OPSET
    if opset >= OPSET:
        return model
    old = [n.name for n in model.graph.node if n.op_type in ("Resize", "Upsample")] if opset < 11 else []
    try:
        converted: ModelProto = version_converter.convert_version(model, OPSET)
    except Exception:  # of onnx's own kinds: an operation without an adapter
        return model
    if old:  # before opset 11 coordinates were those of the left upper corner; onnx's converter does not say so
        for node in converted.graph.node:
            if node.op_type == "Resize":
                said = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                for attribute in [a for a in node.attribute if a.name in said]:
                    node.attribute.remove(attribute)
                node.attribute.extend(helper.make_attribute(k, v) for k, v in said.items())
    return converted


def _in_float32(model: ModelProto) -> None:
    """Compute in float32 what is computed in half or double precision; inputs and outputs keep their types."""
    graph = model.graph
    stored = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.type == a.TENSOR)]
    for tensor in stored:
        if tensor.data_type in HALVES:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if (node.op_type == "Cast" and attribute.name == "to") or attribute.name == "dtype":
                attribute.i = TensorProto.FLOAT if attribute.i in HALVES else attribute.i
    del graph.value_info[:]
    inner: dict[str, str] = {}
    before, behind = [], []
    for value in graph.input:
        if value.type.tensor_type.elem_type in HALVES:
            inner[value.name] = f"{value.name}_float32"
            before.append(helper.make_node("Cast", [value.name], [inner[value.name]], to=TensorProto.FLOAT))
    for value in graph.output:
        if value.type.tensor_type.elem_type in HALVES:
            inner[value.name] = f"{value.name}_float32"
            kind = value.type.tensor_type.elem_type
            behind.append(helper.make_node("Cast", [inner[value.name]], [value.name], to=kind))
    for node in graph.node:
        node.input[:] = [inner.get(i, i) for i in node.input]
        node.output[:] = [inner.get(o, o) for o in node.output]
    nodes = [*before, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)
    _skip(model, "Cast", lambda node, kinds: kinds.get(node.input[0]) == kinds.get(node.output[0]) == TensorProto.FLOAT)


def _pass_dropouts(model: ModelProto) -> None:
    """A Dropout does nothing outside of training."""
    read = {i for n in model.graph.node for i in n.input} | {o.name for o in model.graph.output}
    _skip(model, "Dropout", lambda node, _: not read.intersection(node.output[1:]))


def _skip(model: ModelProto, kind: str, nothing: Callable[[NodeProto, dict[str, int]], bool]) -> None:
    """Make an Identity of each operation of a kind that does nothing, which is told the types of values by name."""
    if not any(n.op_type == kind for n in model.graph.node):
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {t.name: t.data_type for t in inferred.initializer}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in [*inferred.input, *inferred.output, *inferred.value_info]}
    for node in model.graph.node:
        if node.op_type == kind and nothing(node, kinds):
            same = helper.make_node("Identity", node.input[:1], node.output[:1], node.name)
            node.CopyFrom(same)
