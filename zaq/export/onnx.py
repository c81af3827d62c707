"""The student as an integer ONNX file: QuantizeLinear, an integer Clip below 8 bits (QCDQ), DequantizeLinear.

onnxruntime and its like fuse these pairs with the operation between them into one integer kernel. Weights are stored
as int8 with a scale per channel, biases as int32 in steps of s_x s_w.

x86 kernels without VNNI add pairs of uint8 x int8 products in saturating int16, and a file that is right elsewhere can
lose ten points there. Weights of 8 bits are therefore fitted so that no pair overflows (`FakeQuantize.make_room`);
those that some other grid leaves too large are stored as uint8 with zero point 128, the same numbers, for kernels that
are exact but half as fast.

Clips that a quantizer does not repeat (equalized ReLU6, which has one for each channel; ReLU on a signed grid) clip
integers too, behind QuantizeLinear. Where the file is for another runtime, `target` says what of all this it takes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import ModelProto, helper
from onnxscript import opset18
from torch._ops import OpOverload

from zaq.config.bounds import json_text
from zaq.config.targets import TARGETS, Target
from zaq.export.ends import INPUT, OUTPUT, SIZES, dress, renamed, reshape_ends
from zaq.export.forms import lower_opset, optimized, pack, require_form, strip
from zaq.export.integers import avoid_overflow, store_integers, store_rounded
from zaq.export.rewrites import (
    clip_integers,
    count_values,
    hand_through,
    keep_floats,
    move_integers,
    pool_globally,
    requantize_by_table,
)
from zaq.ir.capture import quiet
from zaq.sources.frame import put_back, rename
from zaq.sources.interface import Interface

__all__ = ["in_form", "to_onnx", "translate"]

OPSET = 18
HERE = TARGETS["onnxruntime"]
PLAIN = Interface()
op: Any = opset18


def to_onnx(exported: torch.export.ExportedProgram, metadata: dict[str, Any], **choices: Any) -> bytes:
    """A student's program (`program_of`) as a file; `choices` as in `in_form`."""
    return in_form(translate(exported), metadata, **choices)


def translate(exported: torch.export.ExportedProgram) -> ModelProto:
    """The program in ONNX's operations, as torch's exporter writes it: floats between pairs of quantizers,
    weights too."""
    for library in ("torch.onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        with _whole(exported):
            model = _exported(exported)
    except torch.onnx.OnnxExporterError:  # something has a form in ONNX only in parts
        model = _exported(exported)
    hand_through(model)
    pool_globally(model)
    count_values(model)
    _name_ends(model)
    _anonymise(model)
    return model


def _exported(exported: torch.export.ExportedProgram) -> ModelProto:
    gelu = any(n.target is torch.ops.aten.gelu.default for n in exported.graph.nodes)  # five operations before opset 20
    with quiet():
        program = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=20 if gelu else OPSET,
            custom_translation_table={torch.ops.zaq.fake_quantize.default: _translate},
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _whole(exported: torch.export.ExportedProgram) -> Iterator[None]:
    """Inside, the exporter takes operations as they are. It has those decomposed that ONNX has only in parts, for which
    torch traces the program twice, also where there is none: half of an export's time.
    """
    asked = exported.run_decompositions

    def decomposed(table: dict[Any, Any] | None = None, **choices: Any) -> torch.export.ExportedProgram:
        calls = {n.target for n in exported.graph.nodes if n.op == "call_function"}
        in_place = any(isinstance(c, OpOverload) and c._schema.is_mutable for c in calls)
        return asked(table, **choices) if in_place or not calls.isdisjoint(table or calls) else exported

    exported.run_decompositions = decomposed
    try:
        yield
    finally:
        del exported.run_decompositions


def in_form(
    translated: ModelProto,
    metadata: dict[str, Any],
    form: str = "qdq",
    opset: int | None = None,
    target: Target = HERE,
    interface: Interface = PLAIN,
    frame: bytes | None = None,
) -> bytes:
    """A translated program as a file of one of `forms.FORMS`; `metadata` goes into its properties under `zaq.` names,
    as JSON. opset None: the source's, if it holds the file, else the lowest that does.

    The input is (batch, C, H, W), normalised; names, types, sizes and the other properties are the interface's, and
    where that says nothing the input is float32, the batch open, and the outputs are those of the model.
    `frame`: what stood around the network in its source, and stands around it in the file (`zaq.sources.frame`).
    Raises BitsError for a form that does not exist or cannot hold the bits, SourceError for an opset that cannot.
    """
    require_form(form)
    model = ModelProto()
    model.CopyFrom(translated)
    if form == "float":
        strip(model)
    else:
        store_integers(model, target.float_biases)
        if target.integer_clips:
            clip_integers(model)
            move_integers(model)
            requantize_by_table(model)
        if target is HERE:
            keep_floats(model)
        store_rounded(model)
        avoid_overflow(model)
    if form == "packed":
        pack(model, opset)
    lower_opset(model, form, opset, interface.opset)
    dress(model, interface)
    if interface.classes:
        metadata = metadata | {"classes": interface.classes}
    ours = {f"zaq.{name}": json_text(value) for name, value in metadata.items()}
    helper.set_model_props(model, interface.properties | ours)
    onnx.checker.check_model(model)
    if form == "qoperator":  # before sizes are said: onnxruntime would compute what follows from fixed ones
        model = onnx.load_from_string(optimized(model))
    reshape_ends(model, interface)
    whole = put_back(bytes(model.SerializeToString()), frame)
    return optimized(onnx.load_model_from_string(whole), to_ort=True) if form == "ort" else whole


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
    """Call the input `input` and the outputs `output`, `output_1`, ... whatever the model called them, and what is open
    of the input's sizes `batch`, `height` and `width`, wherever it appears in an output's.
    """
    graph = model.graph
    names = {graph.input[0].name: INPUT}
    names |= {o.name: OUTPUT if i == 0 else f"{OUTPUT}_{i}" for i, o in enumerate(graph.output)}
    rename(graph, names)
    sizes = {d.dim_param: size for d, size in zip(graph.input[0].type.tensor_type.shape.dim, SIZES, strict=False)}
    for value in [*graph.input, *graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = renamed(dim.dim_param, sizes)


def _anonymise(model: ModelProto) -> None:
    """torch writes stack traces with the user's paths into every node: take them out."""
    for item in [*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output, model.graph]:
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del model.metadata_props[:]
    model.graph.name = "zaq"
    model.producer_name, model.producer_version = "zaq", ""
