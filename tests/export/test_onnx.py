"""The ONNX file: integers inside, the same numbers as the student, integer kernels in onnxruntime."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from zoo import CARD, ZOO, images, quantized_like, quantized_net

import zaq
from zaq.config.bits import QConfig
from zaq.errors import SourceError
from zaq.export.session import session
from zaq.methods.rtn import RTN
from zaq.verify.parity import compare

QUICK = RTN()
IN_FLOAT = {
    "transposed": {"ConvTranspose", "Tanh"},
    "shared_weight": {"BatchNormalization"},
    "signed": {"Add", "BatchNormalization"},  # no integer kernel reads the sum
    "shuffle": {"HardSigmoid", "Mul"},
    "tokens": {"Add", "Concat", "Gelu", "LayerNormalization", "Mul", "Softmax"},
}


def exported(name: str, bits: str, folder: Path, **kwargs: bool) -> tuple[zaq.Quantized, Path]:
    quantized = quantized_net(name, bits, QUICK, card=CARD)
    path = folder / "model.onnx"
    quantized.export(path, **kwargs)
    return quantized, path


# A transformer's linear layers, their biases in the accumulator, both products of two attentions, and GELU in one
# kernel.
RUN = {
    "tokens": {"QGemm": 7, "MatMulIntegerToFloat": 2, "QLinearMatMul": 2, "Gelu": 1, "Gemm": 0, "MatMul": 0, "Erf": 0}
}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("bits", [pytest.param("w8a8", marks=pytest.mark.slow), "w4a4"])
def test_file_is_the_student(name: str, bits: str, tmp_path: Path) -> None:
    quantized, path = exported(name, bits, tmp_path)
    parity = compare(path, quantized.module, images(64) * 1.5)
    assert parity.share_equal > 0.9 and parity.share_worse < 0.03, (
        parity.sentence()
    )  # ties; `test_random_nets` knows them one by one
    assert parity.top1_agreement is None or parity.top1_agreement > 0.96
    assert {n.split()[0] for n in parity.float_kernels} == IN_FLOAT.get(name, set()), parity.kernels
    assert all(parity.kernels.get(kernel, 0) == count for kernel, count in RUN.get(name, {}).items()), parity.kernels


@pytest.mark.parametrize("bits", ["w2a2", pytest.param("w5a3", marks=pytest.mark.slow), "w4a8", "w6a6"])
def test_all_bits(bits: str, tmp_path: Path) -> None:
    quantized, path = exported("residual", bits, tmp_path)
    assert compare(path, quantized.module, images(64)).share_equal > 0.95


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_residual_stream_is_rounded_for_layers_in_integers(bits: str, tmp_path: Path) -> None:
    """Below 8 bits a layer has its own rounding of what an addition reads at 8: a look-up, with no float in between."""
    quantized, path = exported("residual", bits, tmp_path)
    kernels = compare(path, quantized.module, images(8)).kernels
    assert kernels.get("QLinearLeakyRelu", 0) == (bits == "w4a4") and "DequantizeLinear" not in kernels, kernels


@pytest.mark.parametrize("weights", ["per_channel_affine", "per_tensor", "per_tensor_affine"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_every_weight_grid(weights: str, bits: str, tmp_path: Path) -> None:
    """onnxruntime takes one zero point a weight: channels with their own lie around 0, or as int16 where 8 bits are too
    few.
    """
    quantized = quantized_net("grouped", QConfig.parse(bits, None, weights=weights), QUICK, card=CARD)
    quantized.export(tmp_path / "model.onnx")
    parity = compare(tmp_path / "model.onnx", quantized.module, images(64))
    in_float = (weights, bits) == ("per_channel_affine", "w8a8")
    assert parity.share_worse == 0 and (in_float or parity.share_equal > 0.9), parity.sentence()
    assert bool(parity.float_kernels) == in_float, parity.kernels


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "pools"])
def test_symmetric_activations_stay_integers(name: str, bits: str, tmp_path: Path) -> None:
    """int8 with zero point 0; a ReLU, which such a grid does not repeat, clips integers."""
    quantized = quantized_net(name, QConfig.parse(bits, activations="symmetric"), QUICK, card=CARD)
    quantized.export(tmp_path / "model.onnx")
    parity = compare(tmp_path / "model.onnx", quantized.module, images(64))
    # An average of integers may end half-way between two steps, where the checkpoint's floats toss a coin.
    assert parity.share_equal > 0.9 and not parity.float_kernels, (parity.sentence(), parity.kernels)
    assert not {"Relu", "Max", "Min"} & set(parity.kernels), parity.kernels
    graph = onnx.load(tmp_path / "model.onnx").graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    zeros = [tensors[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
    clips = [(int(tensors[n.input[1]]), int(tensors[n.input[2]])) for n in graph.node if n.op_type == "Clip"]
    assert zeros and all(z.dtype == np.int8 and not z.any() for z in zeros)
    assert (0, 127 if bits == "w8a8" else 7) in clips, clips  # one Clip, also where there are fewer bits


@pytest.mark.parametrize("placement", ["gdfq", "brecq"])
def test_the_literatures_placements_export_too(placement: str, tmp_path: Path) -> None:
    """With float tensors between the quantized ones a sum may round apart; seldom, and then by a step."""
    quantized = quantized_net("residual", QConfig.parse("w4a4", placement=placement), QUICK, card=CARD)
    quantized.export(tmp_path / "model.onnx")
    parity = compare(tmp_path / "model.onnx", quantized.module, images(64))
    assert parity.top1_agreement is not None and parity.top1_agreement > 0.96, parity.sentence()
    assert any("comparison" in n for n in quantized.report["notes"])


def test_weights_are_stored_as_integers_of_their_bits(tmp_path: Path) -> None:
    _, path = exported("residual", "w3a4", tmp_path)
    graph = onnx.load(path).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    weights = [tensors[makers[n.input[1]].input[0]] for n in graph.node if n.op_type in ("Conv", "Gemm")]
    biases = [tensors[makers[n.input[2]].input[0]] for n in graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(weights) == 5
    assert all(w.dtype == np.int8 for w in weights)
    assert all(w.min() >= -4 and w.max() <= 3 for w in weights[1:-1])
    assert all(b.dtype == np.int32 for b in biases)
    assert not [t for t in tensors.values() if t.dtype == np.float32 and t.ndim > 1]
    clips = [n for n in graph.node if n.op_type == "Clip"]
    assert clips and all(tensors[c.input[2]].dtype == np.uint8 and tensors[c.input[2]] == 15 for c in clips)


def test_properties_say_what_it_is_and_nothing_of_the_machine(tmp_path: Path) -> None:
    _, path = exported("residual", "w4a4", tmp_path)
    model = onnx.load(path)
    properties = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert properties["zaq.bits"] == "w4a4" and properties["zaq.seed"] == 0
    assert properties["zaq.method"]["name"] == "rtn" and properties["zaq.card"]["mean"] == [0.5] * 3
    raw = path.read_bytes()
    assert b".py" not in raw and b"site-packages" not in raw and str(Path.home()).encode() not in raw


def test_the_batch_is_dynamic(tmp_path: Path) -> None:
    quantized, path = exported("residual", "w8a8", tmp_path)
    run = session(path)
    for n in (1, 7):
        (found,) = run.run(None, {"input": images(n).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), quantized.module(images(n)), atol=1e-3, rtol=1e-3)


def test_several_outputs(tmp_path: Path) -> None:
    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1), torch.nn.Conv2d(4, 5, 3, 2)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            x = self.stem(x).relu()
            return [self.a(x), self.b(x)]

    torch.manual_seed(0)
    quantized = quantized_like(Heads(), images(1), "w4a4", QUICK, card=CARD)
    quantized.export(tmp_path / "model.onnx")
    parity = compare(tmp_path / "model.onnx", quantized.module, images(32))
    assert parity.share_equal > 0.98 and parity.top1_agreement is None and not parity.float_kernels


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x0a\x12\x07"])
def test_a_broken_file_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(SourceError, match=r"model\.onnx: onnxruntime cannot load it"):
        session(tmp_path / "model.onnx")
