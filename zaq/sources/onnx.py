"""Models as ONNX files, read through onnx2torch. What cannot be read is named: all of it at once."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from onnx.onnx_cpp2py_export.checker import ValidationError
from torch.fx import GraphModule

from zaq.config.bounds import ELEMENTS
from zaq.errors import SourceError
from zaq.ir.capture import quiet
from zaq.ir.sizes import open_up
from zaq.sources.base import Request, Source, first_line, require, source_of
from zaq.sources.frame import Cut, cut
from zaq.sources.interface import interface_of
from zaq.sources.normal import normalised
from zaq.sources.parity import require_same

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


def read_onnx(request: Request) -> Source:
    """The float network of an ONNX file. Its batch becomes dynamic; H and W must be fixed,
    in the file or by the card."""
    path = request.file()
    model, digest = _opened(path)
    interface = interface_of(model)
    _require_readable(path, model)
    require("onnx2torch", "onnx2torch", request.spec)
    contents = [model.SerializeToString()]
    with _as_sentences(path):
        model = normalised(model)
    contents.append(model.SerializeToString())
    with _as_sentences(path):
        found = cut(model, request.spec, request.bind, request.layout)
    if found.frame is not None:  # it has the ends
        interface = replace(interface, inputs=(), outputs=())
    shape = _input_shape(request, found.network)
    source = _read_at(request, found, contents, digest, shape)

    def read(image: tuple[int, ...]) -> GraphModule:
        return source.graph if image == shape else _read_at(request, found, contents, digest, image).graph

    sizes = found.network.graph.input[0].type.tensor_type.shape.dim
    graph, notes = open_up(read, shape, tuple(d for d in (2, 3) if len(sizes) == 4 and not sizes[d].dim_value))
    notes = (*source.notes, *notes)
    return replace(source, graph=graph, notes=notes, interface=interface)


def _read_at(request: Request, found: Cut, contents: list[bytes], digest: str, shape: tuple[int, ...]) -> Source:
    """The network for images of one size, which takes the place of those that the file leaves open. `contents`: the
    whole file, as it was and in its one spelling."""
    from zaq.sources.converters import convert, unconverted

    path, request = request.file(), replace(request, flags={**request.flags, "input": shape})
    with _as_sentences(path):
        model = _prepared(found.network, shape)
        _require_room_around(contents[1], found.frame, (1, *shape))
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
    source = source_of(request, path.stem, module, {"input": shape}, sha256=digest, notes=found.notes)
    source = replace(source, frame=found.frame)
    if found.integers:  # whole pixels, whatever flags say of their mean
        source = replace(source, card=source.card.of_bytes())
    require_same(path, contents, found, request.bind, source)
    return source


@contextmanager
def _as_sentences(path: Path) -> Iterator[None]:
    """Turn what onnx and onnx_ir say of a model that is none into a sentence that names the file."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # of protobuf's, of onnx's and of onnx_ir's own kinds
        raise SourceError(f"{path}: is no valid ONNX file: {first_line(error)}") from error


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
    _require_text(path, model)
    for tensor in outside:
        digest.update(tensor.raw_data)
    return onnx.inliner.inline_local_functions(model) if model.functions else model, digest.hexdigest()


def _require_text(path: Path, message: Any) -> None:
    """Raises SourceError for a name that is not in UTF-8: protobuf hands it on as bytes, which nobody takes for one."""
    for field, value in message.ListFields():
        if field.type in (field.TYPE_STRING, field.TYPE_MESSAGE):
            for part in [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value:
                if hasattr(part, "ListFields"):
                    _require_text(path, part)
                elif isinstance(part, bytes):
                    raise SourceError(f"{path}: is no valid ONNX file: its {field.name} {part[:60]!r} is not in UTF-8.")


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


def _input_shape(request: Request, network: onnx.ModelProto) -> tuple[int, ...]:
    """(C, H, W): what the file fixes, and for the rest what the card says."""
    (image,) = network.graph.input
    dims = [d.dim_value or None for d in image.type.tensor_type.shape.dim][1:]
    known = request.card().input
    if not dims or None in dims:
        if not known:
            raise SourceError(
                f"{request.path}: the size of its input {image.name!r} is left open; say it: --input-shape C,H,W."
            )
        dims = dims or [None] * len(known)
    if known and (len(known) != len(dims) or any(d not in (None, k) for d, k in zip(dims, known, strict=True))):
        fixed = ",".join(str(d or "?") for d in dims)
        raise SourceError(
            f"{request.path}: its input {image.name!r} is fixed to {fixed} (C,H,W); card or flags say "
            f"{','.join(map(str, known))}. Export it anew for another size, or with open ones."
        )
    return tuple(d or k for d, k in zip(dims, known or dims, strict=True))  # type: ignore[misc]


def _prepared(network: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model for a batch of BATCH images of one shape, with whatever follows from that computed."""
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    model = onnx.ModelProto()
    model.CopyFrom(network)
    dims = model.graph.input[0].type.tensor_type.shape
    if dims.dim and dims.dim[0].dim_value:
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
    from zaq.sources.windows import explicit_pads

    explicit_pads(model)
    return model


def _require_room(model: onnx.ModelProto) -> None:
    """Raise ValueError for a tensor that no image needs; a constant of such a size is made while it is folded."""
    for value in model.graph.value_info:
        size = math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        if size > ELEMENTS * (BATCH if size % BATCH == 0 else 1):
            raise ValueError(
                f"{value.name!r} has {min(size, 10**99):.3g} elements, more than the {ELEMENTS:.3g} that are taken"
            )


def _require_room_around(whole: bytes, frame: bytes | None, shape: tuple[int, ...]) -> None:
    """The same of what stands around the network, which onnxruntime is about to run."""
    if frame is None:
        return
    model = onnx.load_model_from_string(whole)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim in dims:  # four of an image, in whichever order: no more than that has room
            dim.dim_value = dim.dim_value or (max(shape) if len(dims) == len(shape) else 1)
    _require_room(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _should_fold(node: ir.Node) -> bool | None:
    """Sizes are made with ConstantOfShape; what is expanded to the batch is no constant. None: as onnxscript has it."""
    shape = node.outputs[0].shape
    if node.op_type == "Expand" and shape is not None and any(d % BATCH == 0 for d in shape if isinstance(d, int)):
        return False
    return True if node.op_type == "ConstantOfShape" else None


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
