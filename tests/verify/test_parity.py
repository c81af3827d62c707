"""The comparison itself: it must see a file that is not the student."""

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from zoo import CARD, images, quantized_net

import zaq
from zaq.methods.rtn import RTN
from zaq.verify.kernels import kernels
from zaq.verify.parity import compare


@pytest.fixture(scope="module")
def quantized() -> zaq.Quantized:
    return quantized_net("residual", "w8a8", RTN(), card=CARD)


def test_a_changed_file_is_seen(quantized: zaq.Quantized, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    quantized.export(path)
    assert compare(path, quantized.module, images(32)).share_equal > 0.95
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name.endswith("_quantized"))
    changed = numpy_helper.to_array(weight).copy()
    changed[0] = changed[0][::-1]
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)
    parity = compare(path, quantized.module, images(32))
    assert parity.share_equal < 0.5 and parity.largest_difference > 0
    assert "off by one step" in parity.sentence() and "worst channel" in parity.sentence()
    assert parity.worst[1] > 0.01


def test_float_kernels_are_named(tmp_path: Path) -> None:
    gated = quantized_net("transposed", "w8a8", RTN(), card=CARD)
    gated.export(tmp_path / "model.onnx")
    parity = compare(tmp_path / "model.onnx", gated.module, images(8))
    assert [n.split()[0] for n in parity.float_kernels] == ["ConvTranspose", "Tanh"] and parity.top1_agreement is None
    assert kernels(tmp_path / "model.onnx").counts["QLinearConv"] == 2
    assert any("tanh" in name for name in gated.report["in_float"])
