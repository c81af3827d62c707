"""A file takes and gives what its source did: names, types, sizes, properties, in every form."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from zoo import images, quantized_net

from zaq.config.card import Card
from zaq.errors import SourceError
from zaq.export.forms import FORMS
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import batch_of, run_session, session, taken
from zaq.methods.rtn import RTN
from zaq.sources.interface import End, Interface, interface_of
from zaq.verify.layers import compare_layers
from zaq.verify.parity import compare

SHAPE = (3, 16, 16)
PROGRAM = program_of(quantized_net("residual", "w4a4", RTN(), card=Card(input=SHAPE)).module)
TRANSLATED = translate(PROGRAM)
THEIRS = Interface(
    inputs=(End("images", "FLOAT", ("N", *SHAPE), "pixels"),),
    outputs=(End("relu", "FLOAT", ("N", "classes"), "logits"),),  # as a tensor within is called
    properties={"names": "{0: 'cat'}", "character": "a\nb"},
    opset=17,
    doc="a model",
    graph="main_graph",
    graph_doc="a graph",
    domain="org.example",
    version=7,
    classes=("cat", "dog"),
)


def written(interface: Interface, path: Path, form: str = "qdq") -> Path:
    path.write_bytes(in_form(TRANSLATED, {"bits": "w4a4"}, form=form, interface=interface))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_what_is_around_a_network_is_kept(form: str, tmp_path: Path) -> None:
    run = session(written(THEIRS, tmp_path / ("model.ort" if form == "ort" else "model.onnx"), form))
    (start,), (end,) = run.get_inputs(), run.get_outputs()
    assert (start.name, start.type, start.shape) == ("images", "tensor(float)", ["N", 3, 16, 16])
    assert (end.name, end.type, end.shape) == ("relu", "tensor(float)", ["N", 5])
    about = run.get_modelmeta()
    found = about.custom_metadata_map
    assert found == THEIRS.properties | {"zaq.bits": '"w4a4"', "zaq.classes": '["cat", "dog"]'}
    if form != "ort":
        assert (about.description, about.graph_description, about.graph_name) == ("a model", "a graph", "main_graph")
        model = onnx.load(tmp_path / "model.onnx")
        assert (model.domain, model.model_version) == ("org.example", 7)
        assert (model.graph.input[0].doc_string, model.graph.output[0].doc_string) == ("pixels", "logits")
        opset = next(o.version for o in model.opset_import if not o.domain)
        assert opset == (21 if form == "packed" else 17)


def test_a_name_that_a_tensor_within_has(tmp_path: Path) -> None:
    """The file is still compared layer by layer, and each quantizer's tensor is found."""
    plain = onnx.load(written(Interface(), tmp_path / "plain.onnx"))
    within = [n.output[0] for n in plain.graph.node if n.op_type == "DequantizeLinear"]
    module = PROGRAM.module(check_guards=False)
    wanted, _ = compare_layers(tmp_path / "plain.onnx", module, images(4))
    for name in within[:6]:
        path = written(Interface(inputs=(End(name),)), tmp_path / "net.onnx")
        found, _ = compare_layers(path, module, images(4))
        assert [layer.name for layer in found] == [layer.name for layer in wanted], name


@pytest.mark.parametrize("form", ["qdq", "qoperator", "ort"])
@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "UINT8"])
def test_types_at_the_ends(kind: str, form: str, tmp_path: Path) -> None:
    out = "FLOAT16" if kind == "UINT8" else kind
    theirs = Interface(inputs=(End("x", kind, (None, *SHAPE)),), outputs=(End("y", out),))
    path = written(theirs, tmp_path / ("model.ort" if form == "ort" else "model.onnx"), form)
    run = session(path)
    types = {"FLOAT16": "tensor(float16)", "DOUBLE": "tensor(double)", "UINT8": "tensor(uint8)"}
    assert (run.get_inputs()[0].type, run.get_outputs()[0].type) == (types[kind], types[out])
    module = PROGRAM.module(check_guards=False)
    parity = compare(path, module, images(8) * (50 if kind == "UINT8" else 1))
    assert parity.share_worse < 0.03 and parity.share_equal > 0.9, parity.sentence()


def test_a_batch_that_is_fixed_stays_fixed(tmp_path: Path) -> None:
    for form, name in (("qdq", "model.onnx"), ("qoperator", "q.onnx"), ("ort", "model.ort")):
        path = written(Interface(inputs=(End("x", shape=(2, *SHAPE)),)), tmp_path / name, form)
        run = session(path)
        assert run.get_inputs()[0].shape == [2, *SHAPE] and batch_of(run) == 2
        module, x = PROGRAM.module(check_guards=False), images(5)
        with torch.no_grad():
            wanted = module(x).numpy()
        (found,) = run_session(run, x)
        assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).max()
        assert compare(path, module, x).samples == 5


def test_another_size_is_refused_in_words(tmp_path: Path) -> None:
    run = session(written(Interface(), tmp_path / "model.onnx"))
    with pytest.raises(SourceError, match="takes images of 3x16x16, and was to be run on 3x32x32"):
        run_session(run, torch.zeros(1, 3, 32, 32))


def test_an_interface_is_read_and_stored() -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    start = helper.make_tensor_value_info("pixels", TensorProto.FLOAT16, [-1, 3, "h", None], doc_string="normalised")
    end = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "w"], ["y"])], "g", [start], [end], [weight], doc_string="about"
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], doc_string="all")
    helper.set_model_props(model, {"stride": "32", "zaq.parts": "of another file"})
    found = interface_of(model)
    assert found.inputs == (End("pixels", "FLOAT16", (None, 3, "h", None), "normalised"),)
    assert found.outputs == (End("y", "INT64"),) and found.properties == {"stride": "32"}
    assert (found.opset, found.doc, found.graph, found.graph_doc) == (12, "all", "g", "about")
    assert found.open_sizes() == (2, 3)
    assert Interface.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert Interface.from_dict(None) == Interface()
    with pytest.raises(SourceError, match=r"options\.json: interface: inputs"):
        Interface.from_dict({"inputs": 3})


def test_halves_and_whole_numbers_are_rounded_for_both(tmp_path: Path) -> None:
    run = session(written(Interface(inputs=(End("x", "UINT8"),)), tmp_path / "model.onnx"))
    assert isinstance(run, onnxruntime.InferenceSession)
    x = torch.tensor([-3.0, 0.4, 254.6, 300.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert taken(run, x)[0, 0].tolist() == [[0.0, 0.0], [255.0, 255.0]]
