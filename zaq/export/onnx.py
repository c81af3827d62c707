"""The student as an integer ONNX file: QuantizeLinear, an integer Clip below 8 bits (QCDQ), DequantizeLinear.

onnxruntime and its like fuse these pairs with the operation between them into one integer kernel. Weights are stored
as int8 with a scale per channel, biases as int32 in steps of s_x s_w.

One exception: where two products of an activation and a weight can exceed 16 bits (8-bit weights on 8-bit
activations), weights are stored as uint8 with zero point 128, the same numbers. x86 kernels without VNNI add such pairs
of uint8 x int8 products in saturating int16, and a file that is right elsewhere loses ten points there; they take
uint8 x uint8 another, exact way. `int8_weights` keeps int8 for devices that are known to need or deserve it.

Clips that a quantizer does not repeat (equalized ReLU6, which has one for each channel; ReLU on a signed grid) clip
integers too, behind QuantizeLinear. Where the file is for another runtime, `target` says what of all this it takes.
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, helper
from onnxscript import opset18
from torch.fx import GraphModule, Node

from zaq.export.integers import avoid_overflow, clip_integers, pool_globally, store_integers
from zaq.graph import CLAMPS, export_program, quiet
from zaq.nodes import attribute, channel_limits, set_parameter
from zaq.quant.fake_quantize import BiasQuantize, FakeQuantize
from zaq.targets import TARGETS, Target

__all__ = ["program_of", "to_onnx", "write_onnx"]

OPSET = 18
HERE = TARGETS["onnxruntime"]
op: Any = opset18
INPUT, OUTPUT = "input", "output"


def write_onnx(student: GraphModule, path: Path, metadata: dict[str, Any], int8_weights: bool = False, target: Target = HERE) -> None:
    """Export to `path`; see `to_onnx`."""
    onnx.save(to_onnx(program_of(student), metadata, int8_weights, target), path)


def program_of(student: GraphModule) -> torch.export.ExportedProgram:
    """What is shipped, as a program: the checkpoint, and what the ONNX file is made from."""
    return export_program(deployable(student))


def to_onnx(
    exported: torch.export.ExportedProgram, metadata: dict[str, Any], int8_weights: bool = False, target: Target = HERE
) -> ModelProto:
    """A student's program (`program_of`) as ONNX; `metadata` goes into the file's properties under `zaq.` names, as JSON.

    The input is (batch, C, H, W) float32, normalised; the batch is dynamic, the outputs are those of the model.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with quiet():
        program = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=OPSET,
            custom_translation_table={torch.ops.zaq.fake_quantize.default: _translate},
        )
    assert program is not None
    model = program.model_proto
    pool_globally(model)
    store_integers(model, target.float_biases)
    if target.integer_clips:
        clip_integers(model)
    if not (int8_weights or target.int8_weights):
        avoid_overflow(model)
    _name_ends(model)
    _anonymise(model)
    for name, value in metadata.items():
        helper.set_model_props(model, _properties(model) | {f"zaq.{name}": json.dumps(value)})
    onnx.checker.check_model(model)
    return model


def deployable(student: GraphModule) -> GraphModule:
    """A copy of the student with biases rounded, and without the clamps that a quantizer behind them repeats."""
    gm = copy.deepcopy(student)
    gm.requires_grad_(False).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for node in list(gm.graph.nodes):
        if node.op != "call_module":
            continue
        module = gm.get_submodule(str(node.target))
        source = node.args[0]
        assert isinstance(source, Node)
        if isinstance(module, BiasQuantize):
            name = f"{str(node.target).replace('.', '_')}_rounded"
            set_parameter(gm, name, module(attribute(gm, str(source.target))))
            with gm.graph.inserting_before(node):
                node.replace_all_uses_with(gm.graph.get_attr(name))
            gm.graph.erase_node(node)
        elif isinstance(module, FakeQuantize) and _repeats(module, source):
            assert isinstance(source.args[0], Node)
            source.replace_all_uses_with(source.args[0])
            gm.graph.erase_node(source)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def _repeats(quantizer: FakeQuantize, clamp: Node) -> bool:
    """Whether quantizing alone does what the clamp before it does: what lies outside rounds to the grid's own ends."""
    if clamp.target not in CLAMPS or len(clamp.users) > 1:
        return False
    limits = channel_limits(clamp)
    low, high = float(limits[0].max()), float(limits[1].min())
    scale, zero_point = quantizer.scale.detach()[0].item(), int(quantizer.zero_point[0])
    return low / scale + zero_point <= quantizer.quant_min + 0.49 and high / scale + zero_point >= quantizer.quant_max - 0.49


def _translate(x: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int) -> Any:
    """`zaq::fake_quantize` in ONNX operations (onnxscript)."""
    kind = onnx.TensorProto.INT8 if quant_min < 0 else onnx.TensorProto.UINT8
    zero = op.Cast(zero_point, to=kind)
    if axis < 0:
        scale, zero, axis = op.Squeeze(scale), op.Squeeze(zero), 1
    q = op.QuantizeLinear(x, scale, zero, axis=axis)
    if quant_max - quant_min < 255:
        low = op.Cast(op.Constant(value_int=quant_min), to=kind)
        high = op.Cast(op.Constant(value_int=quant_max), to=kind)
        q = op.Clip(q, low, high)
    return op.DequantizeLinear(q, scale, zero, axis=axis)


def _name_ends(model: ModelProto) -> None:
    """Call the input `input` and the outputs `output`, `output_1`, ... whatever the model called them."""
    graph = model.graph
    renames = {graph.input[0].name: INPUT}
    renames |= {o.name: OUTPUT if i == 0 else f"{OUTPUT}_{i}" for i, o in enumerate(graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renames.get(name, name)
    for value in [*graph.input, *graph.output]:
        value.name = renames[value.name]
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _anonymise(model: ModelProto) -> None:
    """torch writes stack traces with the user's paths into every node: take them out."""
    for item in [*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output, model.graph]:
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del model.metadata_props[:]
    model.graph.name = "zaq"
    model.producer_name, model.producer_version = "zaq", ""


def _properties(model: ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}
