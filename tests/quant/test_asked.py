"""Layers with bits of their own, and layers that stay in float."""

from pathlib import Path

import onnx
import pytest
import torch
from zoo import CARD, images, quantized_net, traced

from zaq.config.bits import QConfig
from zaq.errors import BitsError
from zaq.export.session import run_session, session
from zaq.methods.dfq import DFQ
from zaq.passes.fold import fold
from zaq.quant.asked import all_layers, ask, layer_name
from zaq.quant.edges import weighted_layers
from zaq.quant.placement import Placement, place


def placed(layers: dict[str, str], bits: str = "w4a4", net: str = "residual", **more: object) -> Placement:
    qconfig = QConfig.parse(bits, layers=layers, **more)  # type: ignore[arg-type]
    teacher, _ = fold(traced(net))
    ask(teacher, qconfig)
    return place(teacher, qconfig, CARD)[1]


def bits(placement: Placement) -> dict[str, tuple[int, int]]:
    """Of each weight: its bits, and those of what its layer reads."""
    read = {w: placement.activations[r].bits for r, w in placement.layers.values() if r}
    return {name.removesuffix(".weight"): (q.bits, read[name]) for name, q in placement.weights.items()}


def test_the_names_are_those_of_the_modules() -> None:
    teacher, _ = fold(traced("residual"))
    assert [layer_name(n) for n in all_layers(teacher)] == ["stem.0", "body.0.0", "body.1", "down.0", "head.2"]


@pytest.mark.parametrize(("layers", "changed"), [
    ({"body.1": "6"}, {"body.1": (6, 6)}),
    ({"body.1": "w6a3"}, {"body.1": (6, 3)}),
    ({"body": "int8"}, {"body.0.0": (8, 8), "body.1": (8, 8)}),  # a module around layers
    ({"(stem|down).*": "w3a8"}, {"stem.0": (3, 8), "down.0": (3, 8)}),
    ({"head": "w5a5", "head.2": "w6a5"}, {"head.2": (6, 5)}),  # the last that fits
    ({"body": "float", "body.1": "8"}, {"body.0.0": None, "body.1": (8, 8)}),
])  # fmt: skip
def test_bits_of_layers(layers: dict[str, str], changed: dict[str, tuple[int, int] | None]) -> None:
    wanted = bits(placed({})) | changed
    assert bits(placed(layers)) == {name: value for name, value in wanted.items() if value}


def test_a_layer_before_one_in_float_is_not_the_last() -> None:
    """It would have the 8 bits of a last layer, which nobody asked for."""
    placement = placed({"head": "float"})
    assert bits(placement)["down.0"] == bits(placed({}))["down.0"]
    assert any(name.startswith("linear") for name in placement.in_float)


@pytest.mark.parametrize(("layers", "told"), [
    ({"bdy.1": "8"}, r"no layer is called 'bdy.1'. Did you mean 'body.1'\?"),
    ({"body.[": "8"}, r"layer body.\[: is no regular expression"),
    ({"body": "9"}, "'9' is none of 2 to 8 bits, as 8 or w4a8, nor 'float'"),
    ({"body": "flaot"}, "'flaot' is none of 2 to 8 bits"),
])  # fmt: skip
def test_what_no_layer_can_have(layers: dict[str, str], told: str) -> None:
    with pytest.raises(BitsError, match=told):
        placed(layers)


def test_a_tensor_that_two_layers_read_has_one_width() -> None:
    """`left` and `right` of the concatenation read the stem's output."""
    with pytest.raises(BitsError, match=r"layer left\.0: is to read 8 bits of a tensor that right\.0 reads at 4"):
        placed({"left.0": "8"}, net="concat")
    assert bits(placed({"left|right": "8"}, net="concat"))["right.0"] == (8, 8)


def test_a_search_leaves_no_layer_to_ask_for() -> None:
    with pytest.raises(BitsError, match=r"so that body\.1 cannot have its own"):
        QConfig.parse("w4.0a4", layers={"body.1": "8"})


def test_a_network_with_layers_in_float_learns_and_runs(tmp_path: Path) -> None:
    """A method that rewrites the teacher leaves them alone, and the file computes what the student does."""
    qconfig = QConfig.parse("w4a4", layers={"body.1": "float", "down": "w6a8"})
    quantized = quantized_net("residual", qconfig, DFQ(), card=CARD)
    weights = quantized.student.placement.weights
    assert "body.1.weight" not in weights and weights["down.0.weight"].bits == 6
    assert weighted_layers(quantized.teacher) != all_layers(quantized.teacher)
    assert "layers with bits of their own: body.1: float, down: w6a8" in quantized.report["notes"]
    quantized.export(tmp_path / "net.onnx")
    (found,), x = run_session(session(tmp_path / "net.onnx"), images(16)), images(16)
    with torch.no_grad():
        expected = quantized.module(x)
    assert (torch.from_numpy(found) - expected).square().mean() < 1e-3 * expected.var()
    optimized = tmp_path / "optimized.onnx"
    session(tmp_path / "net.onnx", optimized=optimized)
    ops = [n.op_type for n in onnx.load(optimized).graph.node]
    assert ops.count("QLinearConv") == 3 and ("Conv" in ops or "FusedConv" in ops), ops
    assert quantized.verify().agreement > 95
