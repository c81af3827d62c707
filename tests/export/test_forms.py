"""Every form is the same numbers; each holds what its name says."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from zoo import SHAPE, build, images, quantized_like, quantized_net

import zaq
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.cost.deployment import deployment
from zaq.errors import BitsError, SourceError
from zaq.export.forms import FORMS
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.ir.capture import trace
from zaq.methods.rtn import RTN
from zaq.passes.fold import fold
from zaq.report.facts import onnx_metadata
from zaq.verify.kernels import kernels

NETS = ("residual", "depthwise", "pools", "transposed")


@pytest.fixture(scope="module", params=NETS)
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A net at w3a4 in every form, by the form's name."""
    folder = tmp_path_factory.mktemp(request.param)
    quantized = quantized_like(build(request.param), images(1), "w3a4", RTN(), card=Card(input=SHAPE))
    paths = {form: folder / ("model.ort" if form == "ort" else f"{form}.onnx") for form in FORMS}
    translated = translate(program_of(quantized.module))
    for form, path in paths.items():
        path.write_bytes(in_form(translated, onnx_metadata(quantized.report["options"]), form))
    torch.save(fold(trace(build(request.param), images(1)))[0](images(8)), folder / "teacher.pt")
    return paths


def output(path: Path) -> np.ndarray:
    return run_session(session(path, threads=1), images(8))[0]


@pytest.mark.parametrize("form", ["packed", "qoperator", "ort"])
def test_all_forms_are_the_same_numbers(forms: dict[str, Path], form: str) -> None:
    np.testing.assert_allclose(output(forms[form]), output(forms["qdq"]), atol=1e-5)
    if form != "ort":
        ours, theirs = (kernels(forms[f]) for f in (form, "qdq"))
        assert ours.counts.get("QLinearConv") == theirs.counts.get("QLinearConv") and ours.in_float == theirs.in_float


def test_the_float_form_is_the_network_without_quantizers(forms: dict[str, Path]) -> None:
    teacher = torch.load(forms["float"].parent / "teacher.pt", weights_only=True).detach().numpy()
    np.testing.assert_allclose(output(forms["float"]), teacher, atol=0.05 * np.abs(teacher).max())  # biases are rounded
    graph = onnx.load(forms["float"]).graph
    assert not {n.op_type for n in graph.node} & {"QuantizeLinear", "DequantizeLinear"}


def test_packed_weights_take_half_a_byte(forms: dict[str, Path]) -> None:
    graph = onnx.load(forms["packed"]).graph
    packed = [t for t in graph.initializer if t.data_type == TensorProto.INT4]
    assert packed and all(len(t.raw_data) == (np.prod(t.dims) + 1) // 2 for t in packed)
    assert not [t for t in onnx.load(forms["qdq"]).graph.initializer if t.data_type == TensorProto.INT4]
    weights = sum(t.data_type in (TensorProto.INT4, TensorProto.INT8) and len(t.dims) > 1 for t in graph.initializer)
    assert len(packed) == weights - 2  # the first and the last layer have 8 bits


@pytest.mark.parametrize(("grid", "kind"), [("per_channel", "INT2"), ("per_tensor_affine", "UINT2")])
def test_two_bits_take_a_quarter_of_a_byte_where_the_opset_has_them(grid: str, kind: str, tmp_path: Path) -> None:
    quantized = quantized_net("residual", QConfig.parse("w2a4", weights=grid), RTN(), card=Card(input=SHAPE))
    for name, opset in (("packed", None), ("two", 25)):
        quantized.export(tmp_path / f"{name}.onnx", form="packed", opset=opset)
    two, four = (onnx.load(tmp_path / f"{name}.onnx").graph.initializer for name in ("two", "packed"))
    packed = [t for t in two if t.data_type == TensorProto.DataType.Value(kind)]
    assert packed and all(len(t.raw_data) == -(-np.prod(t.dims) // 4) for t in packed)
    halves = {TensorProto.INT4, TensorProto.UINT4}
    assert sum(t.data_type in halves for t in four) == len(packed) and not [t for t in two if t.data_type in halves]
    np.testing.assert_array_equal(output(tmp_path / "two.onnx"), output(tmp_path / "packed.onnx"))
    kept = {t.name: numpy_helper.to_array(t).astype(int) for t in four}
    assert all((numpy_helper.to_array(t).astype(int) == kept[t.name]).all() for t in packed)
    costs = [deployment(tmp_path / f"{name}.onnx", SHAPE) for name in ("two", "packed")]
    assert costs[0].weights < costs[1].weights and costs[0].packed == costs[1].packed


def test_qoperator_has_no_float_operation(forms: dict[str, Path]) -> None:
    operations = {n.op_type for n in onnx.load(forms["qoperator"]).graph.node}
    assert "QLinearConv" in operations and not {"Conv", "Gemm", "Add"} & operations


def test_each_declares_the_lowest_opset(forms: dict[str, Path]) -> None:
    opsets = {f: next(i.version for i in onnx.load(forms[f]).opset_import if not i.domain) for f in FORMS if f != "ort"}
    assert opsets["packed"] == 21 and opsets["qdq"] == 19 and opsets["float"] in (13, 14)


@pytest.fixture(scope="module")
def eight_bits() -> zaq.Quantized:
    return quantized_net("residual", "w8a8", RTN(), card=Card(input=SHAPE))


def test_an_opset_can_be_asked_for(eight_bits: zaq.Quantized, tmp_path: Path) -> None:
    translated = translate(program_of(eight_bits.module))
    for opset in (14, 21):
        (tmp_path / "model.onnx").write_bytes(in_form(translated, {}, opset=opset))
        assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset
        assert session(tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=r"needs 1[34] or later"):
        in_form(translated, {}, opset=12)
    with pytest.raises(SourceError, match="ends at"):
        in_form(translated, {}, opset=999)


def test_what_a_form_cannot_hold_is_a_sentence(eight_bits: zaq.Quantized, tmp_path: Path) -> None:
    with pytest.raises(BitsError, match="weights of 4 bits and fewer"):
        eight_bits.export(tmp_path / "model.onnx", form="packed")
    with pytest.raises(BitsError, match="Did you mean 'packed'"):
        eight_bits.export(tmp_path / "model.onnx", form="pakced")


def test_unsigned_weights_pack_too(tmp_path: Path) -> None:
    quantized = quantized_like(
        build("residual"), images(1), QConfig.parse("w4a4", weights="per_tensor_affine"), RTN(), card=Card(input=SHAPE)
    )
    translated = translate(program_of(quantized.module))
    for form in ("qdq", "packed"):
        (tmp_path / f"{form}.onnx").write_bytes(in_form(translated, {}, form))
    kinds = {t.data_type for t in onnx.load(tmp_path / "packed.onnx").graph.initializer}
    assert TensorProto.UINT4 in kinds
    np.testing.assert_allclose(output(tmp_path / "packed.onnx"), output(tmp_path / "qdq.onnx"), atol=1e-5)


def test_properties_survive_every_form(forms: dict[str, Path]) -> None:
    for form, path in forms.items():
        properties = session(path).get_modelmeta().custom_metadata_map
        assert json.loads(properties["zaq.bits"]) == "w3a4", form
        assert b"site-packages" not in path.read_bytes() and str(Path.home()).encode() + b"/" not in path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "said"), [("bias", "is no number"), ("weight", "is no number"), ("far", "no 32-bit number")]
)
def test_a_damaged_checkpoint_is_no_file(kind: str, said: str) -> None:
    """Nothing is rounded out of what is no number, nor cut off where it does not fit."""
    quantized = quantized_net("residual", "w8a8", RTN(), card=Card(input=SHAPE))
    placed = quantized.student.placement
    _, weight = next(iter(placed.layers.values()))
    bias = placed.biases[weight][0]
    with torch.no_grad():
        quantized.module.get_parameter(weight if kind == "weight" else bias).fill_(float("nan"))
        if kind == "far":
            quantized.module.get_parameter(bias).fill_(1e30)
            placed.weights[weight].inputs = ()  # which leaves room for it else
    with pytest.raises(SourceError, match=said):
        in_form(translate(program_of(quantized.module)), onnx_metadata(quantized.report["options"]), "qdq")
