"""What is around a network: the names, types and shapes of what it takes and gives, and what its file says beside that.

Whoever deploys a file feeds it by these. They are read off the source, stored with the run, and given to every file
that is exported from it (`zaq.export.ends`).
"""

from dataclasses import asdict, field
from typing import Any

from onnx import ModelProto, TensorProto, ValueInfoProto
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from zaq.errors import SourceError

__all__ = ["KINDS", "End", "Interface", "interface_of", "opset_of"]

# numpy's types by onnxruntime's words for them
KINDS = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(uint16)": "uint16", "tensor(int16)": "int16", "tensor(int32)": "int32",
    "tensor(int64)": "int64", "tensor(bool)": "bool",
}  # fmt: skip
OURS = "zaq."  # how the properties begin that we write


@dataclass(frozen=True)
class End:
    """An input or an output. kind: of its elements, as ONNX calls them: FLOAT, FLOAT16, UINT8, ... shape: None where
    nothing is said of it; a size is a number, a name, or open without one.
    """

    name: str
    kind: str = "FLOAT"
    shape: tuple[int | str | None, ...] | None = None
    doc: str = ""


@dataclass(frozen=True)
class Interface:
    """What a source says; what it does not say is as zaq has it: `input`, `output`, `output_1`, an open batch.

    properties: the file's metadata_props. classes: what the entries of a classifier's output are called.
    """

    inputs: tuple[End, ...] = ()
    outputs: tuple[End, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    opset: int | None = None
    doc: str = ""
    graph: str = ""
    graph_doc: str = ""
    domain: str = ""
    version: int = 0
    classes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Any) -> "Interface":
        """From what `to_dict` gave, as a run's options have it; a run of an older zaq has none.

        Raises SourceError for what is none.
        """
        try:
            return TypeAdapter(cls).validate_python(values or {})
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise SourceError(f"options.json: interface: {where}: {error.errors()[0]['msg']}.") from error

    def open_sizes(self) -> tuple[int, ...]:
        """Which of height (2) and width (3) of the images (N, C, H, W) the source leaves open."""
        shape = self.inputs[0].shape if self.inputs else None
        return tuple(d for d in (2, 3) if shape and len(shape) == 4 and not isinstance(shape[d], int))

    def to_dict(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return asdict(self)


def opset_of(model: ModelProto) -> int | None:
    """The version of ONNX's own operations that a file is written in; None where it says none."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def interface_of(model: ModelProto) -> Interface:
    """The interface of an ONNX file, as it was read, before anything is changed in it."""
    stored = {t.name for t in model.graph.initializer}
    return Interface(
        inputs=tuple(_end(i) for i in model.graph.input if i.name not in stored),
        outputs=tuple(_end(o) for o in model.graph.output),
        properties={p.key: p.value for p in model.metadata_props if not p.key.startswith(OURS)},
        opset=opset_of(model),
        doc=model.doc_string,
        graph=model.graph.name,
        graph_doc=model.graph.doc_string,
        domain=model.domain,
        version=model.model_version,
    )


def _end(value: ValueInfoProto) -> End:
    """Old exporters write open sizes as -1, and some as 0."""
    kind = value.type.tensor_type
    sizes = [d.dim_value if d.dim_value > 0 else d.dim_param or None for d in kind.shape.dim]
    return End(
        value.name,
        TensorProto.DataType.Name(kind.elem_type),
        tuple(sizes) if kind.HasField("shape") else None,
        value.doc_string,
    )
