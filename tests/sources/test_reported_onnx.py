"""The files behind public reports (`../shared/reports/onnx`): read, quantized, and compared with what they were."""

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import SHARED

from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.errors import SourceError
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.methods.rtn import RTN
from zaq.sources import load
from zaq.sources.frame import network_of, put_back
from zaq.sources.normal import normalised
from zaq.verify.kernels import kernels

pytest.importorskip("onnx2torch")
FILES = SHARED / "reports" / "onnx"
INDEX = json.loads((FILES / "index.json").read_text()) if FILES.exists() else {}
pytestmark = pytest.mark.skipif(not INDEX, reason="the reports lie in ../shared, which is not here")
OPEN = ("h_w_1_old", "dynamic_h_w")  # files that leave their size open
WHOLE = ("ends_in_argmax", "nonmaxsuppression")  # whole numbers: compared by how many are the same
NO_KERNEL = "no integer kernel"


def flags_of(name: str) -> dict[str, Any]:
    flags = {k: tuple(v) for k, v in INDEX[name]["flags"].items()}
    return flags | ({"input": (3, 16, 16)} if name.startswith(OPEN) else {})


def started(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def original(name: str) -> ort.InferenceSession:
    """The file; one that onnxruntime does not take (an empty name in opset 11) in the reader's own spelling."""
    content = (FILES / name).read_bytes()
    try:
        return started(content)
    except Exception:
        return started(normalised(onnx.load_model_from_string(content)).SerializeToString())


def quantized(name: str, bind: dict[str, tuple[float, ...]] | None = None) -> bytes:
    source = load(str(FILES / name), flags_of(name), bind=bind)
    done = quantize_graph(source.graph, QConfig.parse("w8a8"), RTN(), card=source.card)
    return put_back(in_form(translate(program_of(done.module)), {}), source.frame)


def feed_of(session: ort.InferenceSession, name: str) -> dict[str, np.ndarray[Any, Any]]:
    random, feed = np.random.default_rng(7), {}  # not 0: the weights of these files were drawn by that
    for entry in session.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else {0: 1, 1: 3}.get(i, 16) for i, d in enumerate(entry.shape)]
        if "uint8" in entry.type:
            feed[entry.name] = random.integers(0, 256, shape).astype(np.uint8)
        elif len(shape) < 4:
            feed[entry.name] = np.ones(shape, np.float32)
        elif INDEX[name]["flags"].get("std"):
            feed[entry.name] = random.uniform(-1, 1, shape).astype(np.float32)
        else:
            feed[entry.name] = random.standard_normal(shape).astype(np.float32).clip(-3, 3)
    return feed


def require_near(name: str, content: bytes) -> None:
    """The file of the quantized network against the one it came from, which takes and gives the same."""
    theirs, ours = original(name), started(content)
    feed = feed_of(theirs, name)
    given = {i.name: v for i, v in zip(ours.get_inputs(), feed.values(), strict=False)}
    for found, expected in zip(ours.run(None, given), theirs.run(None, feed), strict=True):
        assert found.dtype == expected.dtype
        if name.startswith(WHOLE):
            rows = {tuple(np.atleast_1d(r)) for r in expected.reshape(-1, expected.shape[-1])}
            same = {tuple(np.atleast_1d(r)) for r in found.reshape(-1, found.shape[-1])}
            shared = (found == expected).mean() if found.shape == expected.shape else len(rows & same) / len(rows)
            assert shared > 0.9
        else:
            assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


NAMES = [n for n in INDEX if not n.startswith("fixed_16x16")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if i % 2 else []) for i, n in enumerate(NAMES)]
)
def test_a_file_is_quantized_as_it_is(name: str) -> None:
    content = quantized(name)
    require_near(name, content)
    left = [node for node in kernels(network_of(content)).in_float if NO_KERNEL not in node.why]
    known = {"Mul"} if "hard" in name else {"Resize"} if "resize_linear" in name else set()
    known |= {"Mul", "Add", "AveragePool"} if "lrn" in name else set()
    assert {node.op for node in left} <= known, left


def test_a_fixed_file_is_refused_at_another_size() -> None:
    name = next(n for n in INDEX if n.startswith("fixed_16x16"))
    with pytest.raises(SourceError, match=r"is fixed to 3,16,16 \(C,H,W\); card or flags say 3,32,32"):
        load(str(FILES / name), flags_of(name))


def test_a_bound_input_is_a_constant() -> None:
    """The file goes on taking it, and has a value for it where none is given."""
    name = next(n for n in INDEX if n.startswith("two_inputs"))
    content = quantized(name, {"sf": (1.0,)})
    require_near(name, content)
    assert "Mul" not in kernels(network_of(content)).counts
    assert [i.name for i in started(content).get_overridable_initializers()] == ["sf"]
