"""What each target's file holds, and that it is the student all the same."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import zaq as command
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from zoo import CARD, images, quantized_net

from zaq.config.bits import ACTIVATION_GRIDS, WEIGHT_GRIDS, QConfig
from zaq.config.targets import TARGETS, Target
from zaq.methods.rtn import RTN
from zaq.verify.parity import Parity, compare

QUICK = RTN()


def exported(target: str, name: str, folder: Path, bits: str = "w8a8") -> tuple[ModelProto, Parity]:
    quantized = quantized_net(name, QConfig.parse(bits, target=target), QUICK, card=CARD)
    assert quantized.report["options"]["target"] == target
    quantized.export(folder / "model.onnx")
    return onnx.load(folder / "model.onnx"), compare(folder / "model.onnx", quantized.module, images(64))


def parts(
    model: ModelProto,
) -> tuple[list[NDArray[np.generic]], list[NDArray[np.generic]], list[NDArray[np.generic]], set[str]]:
    """Zero points of activations, weights, biases; and what stands between a QuantizeLinear and a DequantizeLinear."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    zeros = [tensors[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    weights = [tensors[makers[n.input[1]].input[0]] for n in layers]
    biases = [tensors[n.input[2]] if n.input[2] in tensors else tensors[makers[n.input[2]].input[0]] for n in layers]
    between = {
        makers[n.input[0]].op_type for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in makers
    }
    return zeros, weights, biases, between


@pytest.mark.parametrize("name", ["residual", "depthwise"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_file_keeps_its_targets_rule_and_is_the_student(target: str, name: str, tmp_path: Path) -> None:
    rule = TARGETS[target]
    model, parity = exported(target, name, tmp_path)
    zeros, weights, biases, between = parts(model)
    symmetric = rule.activations[0] == "symmetric"
    assert all(z.dtype == (np.int8 if symmetric else np.uint8) for z in zeros)
    assert not symmetric or not any(z.any() for z in zeros)
    assert all(w.dtype == np.int8 for w in weights)
    assert all(b.dtype == (np.float32 if rule.float_biases else np.int32) for b in biases)
    assert rule.integer_clips or between == {"QuantizeLinear"}
    assert {p.key: p.value for p in model.metadata_props}["zaq.target"] == json.dumps(target)
    # Averages of integers end half-way between two steps, where floats toss a coin: the integer referee agrees in all
    # of them.
    assert parity.share_equal > 0.9 and parity.top1_agreement == 1, parity.sentence()
    assert target == "tensorrt" or not parity.float_kernels, parity.kernels  # which wants ReLU in float, and fuses it


def test_tensorrt_sees_nothing_but_int8_around_zero(tmp_path: Path) -> None:
    model, _ = exported("tensorrt", "residual", tmp_path, "w4a8")
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(tensors[n.input[2]].dtype == np.int8 and not tensors[n.input[2]].any() for n in pairs)
    assert not [t for t in tensors.values() if t.dtype in (np.uint8, np.int32)]


def test_qnn_has_a_scale_per_channel_for_convolutions_only(tmp_path: Path) -> None:
    model, _ = exported("qnn", "residual", tmp_path)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    scales = {
        n.op_type: tensors[makers[n.input[1]].input[1]].size for n in model.graph.node if n.op_type in ("Conv", "Gemm")
    }
    assert scales["Conv"] > 1 and scales["Gemm"] == 1


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_target_names_its_sources(target: Target) -> None:
    assert target.sources and all(s.startswith("https://") for s in target.sources)
    assert (
        target.rule.endswith(".")
        and set(target.activations) <= set(ACTIVATION_GRIDS)
        and set(target.weights) <= set(WEIGHT_GRIDS)
    )


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    quick = ("--method", "rtn", "--effort", "fast", "-o", tmp_path / "out")
    done = command("quantize", "--target", "tensorrt", "--bits", "w8a8", *quick)
    assert done.returncode == 0 and "for tensorrt: Symmetric int8" in done.stdout, done.stderr
    options = json.loads((tmp_path / "out" / "options.json").read_text())
    assert options["target"] == "tensorrt" and options["qconfig"]["activations"] == "symmetric"
    refused = command("quantize", "--target", "tensorrt", "--dry-run")
    assert refused.returncode == 2 and "--bits w4a8" in refused.stderr
