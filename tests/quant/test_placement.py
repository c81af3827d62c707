"""Where quantizers stand, on which grids, and that what is shared has one."""

import pytest
import torch
from torch import Tensor, nn
from zoo import SHAPE, ZOO, images, state_of, traced

from zaq.config.bits import WEIGHT_GRIDS, QConfig
from zaq.config.card import Card
from zaq.ir.capture import trace
from zaq.passes.fold import fold
from zaq.quant.placement import place
from zaq.quant.ranges import bounds

CARD = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("first_last", "expected"), [(8, [8, 4, 4, 4, 8]), (None, [4, 4, 4, 4, 4]), (6, [6, 4, 4, 4, 6])]
)
def test_first_and_last_layer(first_last: int | None, expected: list[int]) -> None:
    folded, _ = fold(traced("residual"))
    _, placement = place(folded, QConfig(4, 4, first_last), CARD)
    assert [q.bits for q in placement.weights.values()] == expected
    assert placement.activations["adaptive_avg_pool2d"].bits == (first_last or 4)
    assert placement.activations["x"].bits == 8


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_reads_quantized_tensors(name: str) -> None:
    folded, _ = fold(traced(name))
    student, placement = place(folded, QConfig.parse("w4a4"), CARD)
    assert placement.layers and all(source and weight for source, weight in placement.layers.values())
    assert set(dict(student.named_parameters())) > set(dict(folded.named_parameters()))
    assert torch.isfinite(student(images(2))).all()


def test_a_shared_weight_has_one_quantizer() -> None:
    folded, _ = fold(traced("shared_weight"))
    _, placement = place(folded, QConfig.parse("w4a4"), CARD)
    assert [weight for _, weight in placement.layers.values()].count("shared.weight") == 2
    assert list(placement.weights).count("shared.weight") == 1


def test_bounds_the_graph_knows() -> None:
    folded, _ = fold(traced("depthwise"))
    known = bounds(folded, CARD)
    assert (known["x"].low, known["x"].high, known["x"].tight) == (-1, 1, True)
    assert (known["hardtanh"].low, known["hardtanh"].high, known["hardtanh"].tight) == (0, 6, True)
    assert known["relu"].low == 0 and not known["relu"].tight
    assert known["adaptive_avg_pool2d"].high == 6
    gate = bounds(fold(traced("squeeze_excite"))[0], Card(input=SHAPE))
    assert (gate["sigmoid"].low, gate["sigmoid"].high) == (0, 1) and "x" not in gate


def test_known_bounds_need_no_samples() -> None:
    folded, _ = fold(traced("depthwise"))
    _, placement = place(folded, QConfig.parse("w8a8"), CARD)
    quantizer = placement.activations["hardtanh"]
    quantizer.calibrate()
    assert abs(quantizer.limits()[1] - 6) < 1e-5


@pytest.mark.parametrize("weights", WEIGHT_GRIDS)
def test_weight_grids(weights: str) -> None:
    folded, _ = fold(traced("residual"))
    _, placed = place(folded, QConfig.parse("w4a4", weights=weights), CARD)
    for name, quantizer in placed.weights.items():
        shared = "tensor" in weights or ("conv" in weights and folded.get_parameter(name).dim() == 2)
        assert len(quantizer.scale) == (1 if shared else len(folded.get_parameter(name)))
        assert bool((quantizer.zero_point != 0).any()) == ("affine" in weights)


@pytest.mark.parametrize("name", ["residual", "depthwise", "squeeze_excite"])
def test_symmetric_activations(name: str) -> None:
    """Signed grids around 0, known ranges included: ReLU6 takes half of one."""
    folded, _ = fold(traced(name))
    student, placed = place(folded, QConfig.parse("w8a3", activations="symmetric"), CARD)
    for quantizer in placed.activations.values():
        quantizer.watch("mse")
    student(images(4))
    for quantizer in placed.activations.values():
        quantizer.calibrate()
        assert (
            quantizer.signed and quantizer.quant_min == -(2 ** (quantizer.bits - 1)) and int(quantizer.zero_point) == 0
        )
    if name == "depthwise":
        high = placed.activations["hardtanh_1"]
        assert high.guaranteed and abs(high.limits()[1] - 6) < 1e-5


def test_a_weight_may_have_bits_of_its_own() -> None:
    folded, _ = fold(traced("residual"))
    name = next(iter(place(folded, QConfig(4, 4), CARD)[1].weights))
    assert place(folded, QConfig(4, 4, layer_bits={name: 2}), CARD)[1].weights[name].bits == 2


def test_depthwise_convolutions_may_have_bits_of_their_own() -> None:
    folded, _ = fold(traced("depthwise"))
    _, placement = place(folded, QConfig.parse("w4a4d8"), CARD)
    found = [
        (placement.weights[weight].bits, placement.activations[source].bits)
        for source, weight in placement.layers.values()
    ]
    assert found == [(8, 8), (8, 8), (4, 4), (8, 8)], "first, depthwise, pointwise, last"


def test_a_guard_is_no_range_and_a_clip_is_one() -> None:
    """A clamp at +-65504 limits what is observed; one whose ends values come near is a range by itself."""
    limits = {}
    for end in (65504.0, 1.0):
        torch.manual_seed(0)
        clamp = nn.Hardtanh(-end, end)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), clamp, nn.Conv2d(8, 4, 3)).eval()
        state = state_of(trace(net, images(1)), "w8a8")
        (name,) = [n for n, q in state.student.placement.activations.items() if q.doubted]
        with state.student.watching("minmax"), torch.no_grad():
            state.student(images(16))
        quantizer = state.student.placement.activations[name]
        limits[end] = quantizer.limits()
        assert quantizer.guaranteed == (end == 1.0)
    assert max(limits[65504.0]) < 10 and limits[1.0] == pytest.approx((-1, 1), abs=0.01)


def test_weights_whose_names_meet_have_a_quantizer_each() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Module()
            self.stem.conv, self.stem_conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.stem_conv(self.stem.conv(x))  # type: ignore[operator,union-attr]

    student = state_of(trace(Net().eval(), images(1)), "w8a8").student
    assert len({id(student.module.get_submodule(f"quant.{key}")) for key in student.placement.keys.values()}) == 2
    for name, quantizer in student.placement.weights.items():
        assert student.module.get_submodule(f"quant.{student.placement.keys[name]}") is quantizer
