"""The methods without training: every structure, every option, the file beside the model, and what they refuse."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from zoo import CARD, ZOO, build, images, quantized_like, quantized_net

from zaq.config.bits import QConfig
from zaq.errors import BitsError, SourceError
from zaq.methods.aciq import ACIQ
from zaq.methods.dfq import DFQ
from zaq.methods.rtn import RTN
from zaq.verify.parity import compare


@pytest.mark.parametrize("method", [RTN(), DFQ(), ACIQ()], ids=["rtn", "dfq", "aciq"])
@pytest.mark.parametrize("name", ZOO)
def test_every_structure(name: str, method: Any) -> None:
    model, x = build(name), images(16)
    quantized = quantized_like(model, x[:1], "w8a8", method, card=CARD)
    with torch.no_grad():
        expected, found = model(x), quantized.module(x)
    assert float((found - expected).pow(2).mean() / expected.var()) < 0.05
    assert quantized.state.samples is not None and quantized.report["agreement"]["samples"] > 0


@pytest.mark.parametrize("options", [
    {"equalize": False}, {"absorb": False, "constants": False}, {"bias_correction": "empirical"},
    {"bias_correction": "none"},
    {"relu6_to_relu": True}, {"search": True}, {"range_deviations": 4.0}])  # fmt: skip
def test_dfq_options(options: dict[str, Any]) -> None:
    model, x = build("depthwise"), images(16)
    quantized = quantized_like(
        model, x[:1], QConfig.parse("w8a8", weights="per_tensor_affine"), DFQ(**options), card=CARD
    )
    with torch.no_grad():
        expected, found = model(x), quantized.module(x)
    assert float((found - expected).pow(2).mean() / expected.var()) < 0.1
    assert any("ReLU6 became ReLU" in n for n in quantized.report["notes"]) == ("relu6_to_relu" in options)


@pytest.mark.parametrize(
    "options", [{"distribution": "gauss"}, {"statistics": "synthetic"}, {"allocate": False}, {"correct": False}]
)
def test_aciq_options(options: dict[str, Any]) -> None:
    model, x = build("residual"), images(16)
    quantized = quantized_like(model, x[:1], "w6a6", ACIQ(**options), card=CARD)
    with torch.no_grad():
        expected, found = model(x), quantized.module(x)
    assert float((found - expected).pow(2).mean() / expected.var()) < 0.2


def test_allocated_bits_are_kept_by_every_channel() -> None:
    quantizer = quantized_net("residual", QConfig.parse("w4a8", None), ACIQ(), card=CARD).student.placement.weights[
        "body.0.0.weight"
    ]
    model = quantized_net("residual", QConfig.parse("w4a8", None), ACIQ(), card=CARD)
    weight = model.module.get_parameter("body.0.0.weight")
    levels = [
        len(torch.unique((row / s).round()))
        for row, s in zip(quantizer(weight).flatten(1), quantizer.scale, strict=True)
    ]
    assert max(levels) > 16  # some have more than 4 bits,
    assert sum(torch.tensor(levels).double().log2()) / len(levels) <= 4  # and none more than its share, on average


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("weights", ["per_channel", "per_tensor_affine"])
def test_a_clip_of_each_channel_is_an_integer_operation_in_the_file(bits: str, weights: str, tmp_path: Path) -> None:
    quantized = quantized_net("depthwise", QConfig.parse(bits, weights=weights), DFQ(), card=CARD)
    quantized.export(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    clips = [n for n in graph.node if n.op_type == "Min"]
    assert clips and all(kinds[n.input[1]] == onnx.TensorProto.UINT8 for n in clips)
    parity = compare(tmp_path / "model.onnx", quantized.module, images(32))
    assert parity.share_equal > 0.8 and parity.top1_agreement == 1, (
        parity.sentence()
    )  # a value rounded apart moves all five logits
    assert not {"Conv", "Gemm", "Add"} & set(parity.kernels), parity.kernels


def test_statistics_are_asked_for_where_they_are_needed() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()
    with pytest.raises(SourceError, match="statistics of batch norms"):
        quantized_like(plain, images(1), "w8a8", ACIQ(statistics="synthetic"), card=CARD)
    for method in (DFQ(), ACIQ()):  # these carry what they assume of the image through the layers instead
        quantized_like(plain, images(1), "w8a8", method, card=CARD)


@pytest.mark.parametrize(("kind", "options", "message"), [
    (DFQ, {"bias_correction": "analytical"}, "Did you mean 'analytic'"),
    (ACIQ, {"distribution": "gaus"}, "Did you mean 'gauss'"), (ACIQ, {"statistics": "bn"},
    "batch_norm, synthetic")])  # fmt: skip
def test_unknown_choices_are_refused(kind: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(BitsError, match=message):
        kind(**options)
