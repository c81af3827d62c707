"""Which tensors are quantized, at which bits, and which twice."""

import pytest
from zoo import SHAPE, traced

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.passes.fold import fold
from zaq.quant.placement import place

CARD = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.5,) * 3)
# What each net's activations are quantized to at w4a3, first and last layer at 8 bits.
EXPECTED = {
    "residual": {
        "x": 8, "relu": 8, "relu_read": 3, "relu_1": 3, "conv2d_2": 8, "relu_2": 3, "relu_3": 8,
        "adaptive_avg_pool2d": 8,
    },
    "concat": {"x": 8, "relu": 3, "relu_1": 8, "relu_2": 8, "cat": 3, "relu_3": 8, "adaptive_avg_pool2d": 8},
    "depthwise": {"x": 8, "relu": 3, "hardtanh": 3, "hardtanh_1": 8, "adaptive_avg_pool2d": 8},
    "pools": {"x": 8, "relu": 3, "relu_1": 8, "avg_pool2d": 3, "relu_2": 8},
    "transposed": {"x": 8, "relu": 3, "relu_1": 8, "conv2d_1": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_integer_placement(name: str) -> None:
    folded, _ = fold(traced(name))
    _, placement = place(folded, QConfig.parse("w4a3"), CARD)
    assert {k: q.bits for k, q in placement.activations.items()} == EXPECTED[name]


def test_the_residual_stream_has_8_bits_and_layers_read_it_at_their_own() -> None:
    folded, _ = fold(traced("residual"))
    student, placed = place(folded, QConfig.parse("w4a3"), CARD)
    calls = {n.target: n for n in student.graph.nodes if n.op == "call_module"}
    wide, narrow = calls["quant.relu"], calls["quant.relu_read"]
    assert narrow.args == (wide,) and placed.tensors["relu_read"] == "relu"
    assert {str(u.target) for u in wide.users} == {"aten.add.Tensor", "quant.relu_read"}
    assert {str(u.target) for u in narrow.users} == {"aten.conv2d.default"}


def test_shared_has_one_quantizer_a_tensor() -> None:
    for name, expected in EXPECTED.items():
        _, placed = place(fold(traced(name))[0], QConfig.parse("w4a3", placement="shared"), CARD)
        once = {k: expected.get(f"{k}_read", v) for k, v in expected.items() if not k.endswith("_read")}
        assert {k: q.bits for k, q in placed.activations.items()} == once


def test_at_8_bits_nothing_is_rounded_twice() -> None:
    integer, shared = (
        place(fold(traced("residual"))[0], QConfig.parse("w8a8", placement=p), CARD)[1] for p in ("integer", "shared")
    )
    assert list(integer.activations) == list(shared.activations)


# The protocols of the literature, at w4a3: what a ReLU writes; or what layers read, 8 bits behind the first and before
# the last.
PROTOCOLS = {
    ("gdfq", "residual"): {"relu": 3, "relu_1": 3, "relu_2": 3, "relu_3": 3},
    ("brecq", "residual"): {"relu": 8, "relu_1": 3, "relu_2": 3, "adaptive_avg_pool2d": 8},
    ("gdfq", "depthwise"): {"relu": 3, "hardtanh": 3, "hardtanh_1": 3},
    ("brecq", "depthwise"): {"relu": 8, "hardtanh": 3, "adaptive_avg_pool2d": 8},
}


@pytest.mark.parametrize(("placement", "name"), PROTOCOLS)
def test_protocols_of_the_literature(placement: str, name: str) -> None:
    folded, _ = fold(traced(name))
    _, placed = place(folded, QConfig.parse("w4a3", placement=placement), CARD)
    assert {k: q.bits for k, q in placed.activations.items()} == PROTOCOLS[placement, name]
    ends = 4 if placement == "gdfq" else 8
    assert [q.bits for q in placed.weights.values()] == [ends, *[4] * (len(placed.weights) - 2), ends]
    assert all(not q.signed and q.axis == 0 for q in placed.weights.values())  # affine, per channel
