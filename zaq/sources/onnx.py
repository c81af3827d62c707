"""Models as ONNX files, read through onnx2torch. What cannot be read is named: all of it at once."""

import copy
import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
import torch
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from onnx.onnx_cpp2py_export.checker import ValidationError
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from zaq.config.bounds import ELEMENTS
from zaq.errors import SourceError
from zaq.ir.capture import quiet
from zaq.ir.sizes import open_up
from zaq.sources.base import Request, Source, first_line, require, source_of
from zaq.sources.interface import Interface, interface_of

__all__ = ["read_onnx"]

FLOW = {"If", "Loop", "Scan", "SequenceMap"}
QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}
# Stands for the batch while sizes are computed: a prime that no layer is wide.
BATCH = 7919
CLOSE = 1e-3  # of the greatest output: float sums in another order differ by a hundredth of that


def read_onnx(request: Request) -> Source:
    """The float network of an ONNX file. Its batch becomes dynamic; H and W must be fixed,
    in the file or by the card."""
    path = request.file()
    model, digest = _opened(path)
    interface = interface_of(model)
    _require_readable(path, model)
    shape = _input_shape(request, model)
    require("onnx2torch", "onnx2torch", request.spec)
    source = _read_at(request, model, digest, interface, shape)

    def read(image: tuple[int, ...]) -> GraphModule:
        return source.graph if image == shape else _read_at(request, model, digest, interface, image).graph

    graph, notes = open_up(read, shape, interface.open_sizes())
    return replace(source, graph=graph, notes=(*source.notes, *notes))


def _read_at(
    request: Request, model: onnx.ModelProto, digest: str, interface: Interface, shape: tuple[int, ...]
) -> Source:
    """The network for images of one size, which takes the place of those that the file leaves open."""
    from zaq.sources.converters import convert, unconverted

    path, request = request.file(), replace(request, flags={**request.flags, "input": shape})
    model = copy.deepcopy(model)
    try:
        onnx.checker.check_model(model)
        content = model.SerializeToString()
        model = _prepared(model, shape)
    except (ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise SourceError(f"{path}: is no valid ONNX file: {first_line(error)}") from error
    missing = unconverted(model)
    if missing:
        raise SourceError(
            f"{path}: holds operations that onnx2torch cannot read: {', '.join(missing)}. Export the model itself as "
            ".pt2."
        )
    try:
        with quiet():
            module = convert(model, BATCH)
    except Exception as error:  # a converter's own refusal, of whatever kind
        raise SourceError(f"{path}: onnx2torch cannot read it: {first_line(error)}") from error
    source = source_of(request, path.stem, module, {"input": shape}, sha256=digest, interface=interface)
    _require_equal(path, content, source)
    return source


def _opened(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model with the weights that lie in other files, and a hash of them all."""
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    try:
        model = onnx.load_model_from_string(content)
        outside = [t for t in model.graph.initializer if uses_external_data(t)]
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValidationError) as error:
        raise SourceError(
            f"{path}: its weights lie in another file that cannot be read: {first_line(error)}"
        ) from error
    except Exception as error:  # protobuf's DecodeError, from whichever protobuf is installed
        raise SourceError(f"{path}: this is no ONNX file ({first_line(error)}).") from error
    for tensor in outside:
        digest.update(tensor.raw_data)
    return onnx.inliner.inline_local_functions(model) if model.functions else model, digest.hexdigest()


def _require_readable(path: Path, model: onnx.ModelProto) -> None:
    kinds = {(n.domain, n.op_type) for n in model.graph.node}
    if not kinds:
        raise SourceError(f"{path}: this is no ONNX file, or one without operations.")
    plain = {name for domain, name in kinds if domain in ("", "ai.onnx")}
    if plain & QUANTIZED or any(name.startswith("QLinear") for _, name in kinds):
        found = _names(plain & QUANTIZED or {name for _, name in kinds if name.startswith("QLinear")})
        raise SourceError(f"{path}: is quantized already ({found}); zaq starts from the float model.")
    if plain & FLOW:
        raise SourceError(
            f"{path}: holds control flow ({_names(plain & FLOW)}), which has no integer form; export the part without "
            "it."
        )
    custom = {f"{domain}.{name}" for domain, name in kinds if domain not in ("", "ai.onnx")}
    if custom:
        raise SourceError(
            f"{path}: holds operations that are not ONNX's own: {_names(custom)}. Export it without them, or as .pt2."
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _input_shape(request: Request, model: onnx.ModelProto) -> tuple[int, ...]:
    """(C, H, W): what the file fixes, and for the rest what the card says."""
    weights = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs) or "none"
        raise SourceError(f"{request.path}: the model must take one tensor, a batch of images; it takes: {names}.")
    kind = inputs[0].type.tensor_type
    dims = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim]  # old exporters write open ones as -1
    if kind.elem_type != onnx.TensorProto.FLOAT:
        kinds = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        raise SourceError(
            f"{request.path}: its input {inputs[0].name!r} is {kinds}; a batch of images in float32 is expected."
        )
    known = request.card().input
    if kind.HasField("shape") and len(dims) != 4:
        raise SourceError(
            f"{request.path}: its input {inputs[0].name!r} has {len(dims)} dimensions; images (N, C, H, W) are "
            "expected."
        )
    if known and any(d not in (None, k) for d, k in zip(dims[1:], known, strict=False)):
        fixed = " x ".join(str(d or "any") for d in dims[1:])
        raise SourceError(
            f"{request.path}: its input {inputs[0].name!r} is fixed at (C, H, W) = {fixed}; card or flags say "
            f"{known}. Export the model anew with that size, or with H and W left open."
        )
    if None in dims[1:] or not dims:
        if not known:
            raise SourceError(
                f"{request.path}: the size of its input {inputs[0].name!r} is left open; say it: --input-shape C,H,W."
            )
        return tuple(d or k for d, k in zip(dims[1:] or known, known, strict=True))
    return tuple(d for d in dims[1:] if d)


def _prepared(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model for a batch of BATCH images of one shape, with whatever follows from that computed."""
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    weights = {t.name for t in model.graph.initializer}
    dims = next(i for i in model.graph.input if i.name not in weights).type.tensor_type.shape
    if dims.dim and dims.dim[0].dim_value > 0:
        _free_reshapes(model, dims.dim[0].dim_value)
    del dims.dim[:]
    dims.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=d) for d in (BATCH, *shape))
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    _require_room(model)
    with quiet():
        fold_constants(model, onnx_shape_inference=True, should_fold=_should_fold)
        remove_unused_nodes(model)
    return model


def _require_room(model: onnx.ModelProto) -> None:
    """Raise ValueError for a tensor that no image needs; a constant of such a size is made while it is folded."""
    for value in model.graph.value_info:
        size = math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        if size > ELEMENTS * (BATCH if size % BATCH == 0 else 1):
            raise ValueError(
                f"{value.name!r} has {min(size, 10**99):.3g} elements, more than the {ELEMENTS:.3g} that are taken"
            )


def _should_fold(node: ir.Node) -> bool | None:
    """Sizes are made with ConstantOfShape; what is expanded to the batch is no constant. None: as onnxscript has it."""
    shape = node.outputs[0].shape
    if node.op_type == "Expand" and shape is not None and any(d % BATCH == 0 for d in shape if isinstance(d, int)):
        return False
    return True if node.op_type == "ConstantOfShape" else None


def _require_equal(path: Path, content: bytes, source: Source) -> None:
    """onnx2torch reads some operations in torch's sense where ONNX has another: hold the graph against onnxruntime."""
    try:
        file = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds derive from nothing nearer
        raise SourceError(f"{path}: onnxruntime cannot run it: {first_line(error)}") from error
    (start,) = file.get_inputs()
    batch = start.shape[0] if isinstance(start.shape[0], int) else 2
    x = torch.randn(batch, *source.card.input, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = pytree.tree_leaves(source.graph(x))
    for value, expected in zip(found, file.run(None, {start.name: x.numpy()}), strict=True):
        wrong = (value - torch.from_numpy(expected)).abs().max() / max(float(np.abs(expected).max()), 1e-12)
        if not float(wrong) < CLOSE:
            raise SourceError(
                f"{path}: onnx2torch reads another network out of it (outputs differ by {100 * float(wrong):.2g} %)."
            )


def _free_reshapes(model: onnx.ModelProto, batch: int) -> None:
    """Where a file fixes its batch, a reshape to (batch, ...) of what has it keeps whatever it has: 0 says so."""
    shapes = {v.name: v.type.tensor_type.shape.dim for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    constants = {t.name: t for t in model.graph.initializer}
    constants |= {
        n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    for i, node in enumerate(n for n in model.graph.node if n.op_type == "Reshape" and n.input[1] in constants):
        sizes = onnx.numpy_helper.to_array(constants[node.input[1]]).copy()
        source = shapes.get(node.input[0])
        if source and source[0].dim_value == batch and len(sizes) and sizes[0] == batch and 0 not in sizes:
            sizes[0] = 0
            free = onnx.numpy_helper.from_array(sizes, f"zaq_sizes_{i}")
            model.graph.initializer.append(free)
            node.input[1] = free.name
            del node.attribute[:]  # allowzero, which the sizes had no zero for
