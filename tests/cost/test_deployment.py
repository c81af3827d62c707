"""What a file costs, against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from zoo import SHAPE, ZOO, quantized_net

import zaq
from zaq.config.card import Card
from zaq.cost.deployment import PICOJOULES, Deployment, costs, deployment, report, table
from zaq.errors import SourceError
from zaq.methods.rtn import RTN

KB = 16 * 16  # a channel of the nets here, in elements


def quantizers(name: str, low: int | None = None) -> list[onnx.NodeProto]:
    """Quantize `name` to uint8 and back, with a Clip between below 8 bits; the result is `name`_q."""
    clip = [] if low is None else [helper.make_node("Clip", [f"{name}_i", "", "top"], [f"{name}_c"])]
    return [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_i"]),
        *clip,
        helper.make_node("DequantizeLinear", [f"{name}_c" if clip else f"{name}_i", "scale", "zero"], [f"{name}_q"]),
    ]


def residual() -> bytes:
    """x (3 channels) -> a = conv 3x3 to 8 -> b = conv 3x3 in 2 groups to 8 -> c = a + b -> transposed conv 2x2 stride 2
    to 4, float.
    """
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.array(0.02, np.float32), "zero": np.array(0, np.uint8), "top": np.array(15, np.uint8),
        "w_scale": np.array(0.01, np.float32), "w_zero": np.array(0, np.int8),
        "b_scale": np.full(8, 0.02 * 0.01, np.float32), "a_bias": np.zeros(8, np.int32),
        "a_w": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "b_w": rng.integers(-7, 8, (8, 4, 3, 3)).astype(np.int8),
        "d_w": rng.standard_normal((8, 4, 2, 2)).astype(np.float32),
    }  # fmt: skip
    constants["a_w"][0, 0, 0, :2], constants["b_w"][0, 0, 0, :2] = (-127, 127), (-7, 7)
    nodes = [
        *quantizers("x"),
        helper.make_node("DequantizeLinear", ["a_w", "w_scale", "w_zero"], ["a_wf"]),
        helper.make_node("DequantizeLinear", ["a_bias", "b_scale"], ["a_biasf"], axis=0),
        helper.make_node("Conv", ["x_q", "a_wf", "a_biasf"], ["a"], pads=[1] * 4, kernel_shape=[3, 3]),
        *quantizers("a", low=0),
        helper.make_node("DequantizeLinear", ["b_w", "w_scale", "w_zero"], ["b_wf"]),
        helper.make_node("Conv", ["a_q", "b_wf"], ["b"], pads=[1] * 4, kernel_shape=[3, 3], group=2),
        *quantizers("b"),
        helper.make_node("Add", ["a_q", "b_q"], ["c"]),
        *quantizers("c"),
        helper.make_node("ConvTranspose", ["c_q", "d_w"], ["d"], strides=[2, 2], kernel_shape=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, ["batch", 4, 32, 32])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def test_bytes_and_operations_by_hand() -> None:
    content = residual()
    found = deployment(content)
    assert found.weights == 8 * 3 * 9 + 8 * 4 * 9 + 4 * 8 * 4 * 4  # two of int8, one of float
    assert found.packed == 8 * 3 * 9 + 8 * 4 * 9 // 2 + 4 * 8 * 4 * 4  # -127 .. 127 in 8 bits, -7 .. 7 in 4
    assert found.biases == 4 * 8
    assert found.scales == (4 + 1) + (4 + 1) + 4 * 8
    assert found.file == len(content) == found.weights + found.biases + found.scales + found.graph
    integers, floats = KB * (8 * 3 * 9 + 8 * 4 * 9), KB * (8 * 4 * 4)
    assert (found.macs, found.integer_macs) == (integers + floats, integers)


def test_memory_and_energy_by_hand() -> None:
    """Live at once: a while b is made of it, then a, b and c, then c as it becomes float, then c in float beside d."""
    found = deployment(residual())
    c, d = 8 * KB, 4 * 4 * KB
    steps = [3 * KB * 4 + 3 * KB, 3 * KB + c, c + c, c + c + c, c + 4 * c, 4 * c + 4 * d]
    assert found.peak == max(steps) == 4 * c + 4 * d
    # read and written: x to integers, a, its Clip, b, the sum, c to float, d
    moved = (3 * KB * 4 + 3 * KB) + (3 * KB + c) + 2 * c + 2 * c + 3 * c + 5 * c + (4 * c + 4 * d)
    assert found.traffic == moved
    picojoules = found.integer_macs * (0.2 + 0.1) + (found.macs - found.integer_macs) * (3.7 + 0.9)
    assert found.energy_macs == pytest.approx(picojoules / 1e6)
    assert found.energy_sram == pytest.approx(moved / 4 * 5 / 1e6)
    assert found.energy_dram == pytest.approx((found.packed + found.biases + found.scales) / 4 * 640 / 1e6)
    assert PICOJOULES["32-bit DRAM access"] == 640 and "2014" in report({"x": found})["source"]


def costs_of(quantized: zaq.Quantized, folder: Path) -> dict[str, Deployment]:
    quantized.export(folder / "model.onnx")
    quantized.export(folder / "plain", form="float")
    return costs((folder / "plain").read_bytes(), folder / "model.onnx")


def test_a_sum_keeps_what_it_skips_alive(tmp_path: Path) -> None:
    """The zoo's residual net: three tensors of 8 channels meet in its sum, a byte an element, and four in float."""
    quantized = quantized_net("residual", "w4a4", RTN(), card=Card(input=SHAPE))
    found = costs_of(quantized, tmp_path)
    assert {name: d.peak for name, d in found.items()} == {"float": 4 * 3 * 8 * KB, "model.onnx": 3 * 8 * KB}
    macs = 9 * (3 * 8 + 2 * 8 * 8) * KB + 9 * 8 * 16 * 64 + 16 * 5
    assert found["float"].macs == found["model.onnx"].macs == found["model.onnx"].integer_macs == macs
    assert found["float"].integer_macs == 0 and found["float"].energy > 4 * found["model.onnx"].energy
    assert found["float"].weights == 4 * found["model.onnx"].weights and found["float"].scales == 0
    assert "100 % in integers" in found["model.onnx"].sentence()
    rows = table(found)
    assert rows[0] == ["a sample", "float", "model.onnx"] and all(len(row) == 3 for row in rows)


@pytest.mark.parametrize("name", sorted({"transposed", "concat", "pools"} & set(ZOO)))
def test_every_structure_has_costs(name: str, tmp_path: Path) -> None:
    quantized = quantized_net(name, "w8a8", RTN(), card=Card(input=SHAPE))
    floats, ours = costs_of(quantized, tmp_path).values()
    assert 0 < ours.integer_macs <= ours.macs == floats.macs and ours.energy < floats.energy


def test_packed_weights_count_as_they_are_stored() -> None:
    """INT4 initializers and a Cast: half a byte a weight in the file, the same operations."""
    model = onnx.load_model_from_string(residual())
    (weight,) = [t for t in model.graph.initializer if t.name == "b_w"]
    flat = numpy_helper.to_array(weight).ravel()
    weight.CopyFrom(helper.make_tensor("b_w4", TensorProto.INT4, (8, 4, 3, 3), flat))
    model.graph.node.insert(0, helper.make_node("Cast", ["b_w4"], ["b_w"], to=TensorProto.INT8))
    model.opset_import[0].version = 21
    plain, packed = deployment(residual()), deployment(model.SerializeToString())
    assert packed.weights == plain.packed == packed.packed and packed.macs == plain.macs
    assert packed.energy == plain.energy and packed.peak == plain.peak


@pytest.mark.parametrize("content", [b"", b"not onnx at all"])
def test_what_is_no_model_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(SourceError, match=r"model\.onnx: "):
        deployment(tmp_path / "model.onnx")
