"""Bits, cards, and near names."""

import pytest
import torch

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.errors import BitsError, SourceError, unknown


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("act_bits", range(2, 9))
def test_bits_round_trip(weight_bits: int, act_bits: int) -> None:
    assert str(QConfig.parse(f"w{weight_bits}a{act_bits}")) == f"w{weight_bits}a{act_bits}"


@pytest.mark.parametrize("text", ["w9a0", "w1a8", "w4", "4a4", "w4a16", "", "int8", "w-4a4"])
def test_other_bits_are_refused(text: str) -> None:
    with pytest.raises(BitsError):
        QConfig.parse(text)


def test_first_last_has_bits_of_its_own() -> None:
    assert QConfig.parse("w4a4").first_last == 8 and QConfig.parse("w4a4", None).first_last is None
    with pytest.raises(BitsError, match="first-last: 9"):
        QConfig.parse("w4a4", 9)


def test_depthwise_has_bits_of_its_own() -> None:
    config = QConfig.parse("w4a4d8")
    assert config == QConfig.parse("w4a4", depthwise=8) and str(config) == "w4a4d8"
    assert config.of_layer(False, False, True) == (8, 8) and config.of_layer(False, False, False) == (4, 4)
    assert config.of_layer(True, False, True) == (8, 8), "the first layer's bits are those of first_last"
    for text, choices in (("w4a4d9", {}), ("w4a4d8", {"depthwise": 6}), ("w4a4d8", {"placement": "gdfq"})):
        with pytest.raises(BitsError, match="depthwise"):
            QConfig.parse(text, **choices)
    with pytest.raises(BitsError, match="searched"):
        QConfig.parse("mixed", target_size=10**6, depthwise=8)


def test_a_placement_brings_its_own_choices() -> None:
    gdfq = QConfig.parse("w4a4", placement="gdfq")
    assert gdfq.first_last is None and gdfq.weights == "per_channel_affine"
    assert QConfig.parse("w4a4", 8, "gdfq", "per_tensor").first_last == 8
    with pytest.raises(BitsError, match="Did you mean 'brecq'"):
        QConfig.parse("w4a4", placement="breqc")
    with pytest.raises(BitsError, match="Did you mean 'per_tensor'"):
        QConfig.parse("w4a4", weights="per_tensr")


def test_a_target_brings_its_grids_and_refuses_others() -> None:
    trt = QConfig.parse("w4a8", target="tensorrt")
    assert (trt.activations, trt.weights, trt.target) == ("symmetric", "per_channel", "tensorrt")
    assert QConfig.parse("w8a8", target="tensorrt", weights="per_tensor").weights == "per_tensor"
    assert (
        QConfig.parse("w8a8").activations == "affine"
        and QConfig.parse("w8a8", activations="symmetric").target == "onnxruntime"
    )
    with pytest.raises(BitsError, match="activations are affine; it takes symmetric"):
        QConfig.parse("w8a8", target="tensorrt", activations="affine")
    with pytest.raises(BitsError, match="weights are per_channel_affine"):
        QConfig.parse("w8a8", target="openvino", weights="per_channel_affine")
    for bits, ends in (("w4a4", 8), ("w8a8", 4)):
        with pytest.raises(BitsError, match="4 bits need an integer Clip"):
            QConfig.parse(bits, ends, target="tensorrt")
    with pytest.raises(BitsError, match="goes with placement integer"):
        QConfig.parse("w8a8", placement="brecq", target="qnn")
    with pytest.raises(BitsError, match="Did you mean 'tensorrt'"):
        QConfig.parse("w8a8", target="tensorRT8")
    with pytest.raises(BitsError, match="Did you mean 'symmetric'"):
        QConfig.parse("w8a8", activations="symetric")


def test_mixed_bits_and_a_size_go_together() -> None:
    mixed = QConfig.parse("mixeda6", target_size=1000)
    assert (mixed.act_bits, mixed.target_size, str(mixed)) == (6, 1000, "mixeda6")
    for bits, size in (("mixed", None), ("w4a4", 1000)):
        with pytest.raises(BitsError, match="target-size"):
            QConfig.parse(bits, target_size=size)


def test_card_bounds_what_a_pixel_can_be() -> None:
    low, high = Card(input=(3, 4, 4), mean=(0.5, 0.4, 0.0), std=(0.5, 0.2, 1.0)).bounds()
    torch.testing.assert_close(low.flatten(), torch.tensor([-1.0, -2.0, 0.0]))
    torch.testing.assert_close(high.flatten(), torch.tensor([1.0, 3.0, 1.0]))
    low, high = Card(input=(1, 4, 4)).bounds()
    assert low == -high == -3


def test_card_round_trips_and_ignores_what_it_does_not_know() -> None:
    card = Card(input=(3, 4, 4), mean=(0.5,) * 3, std=(0.5,) * 3, classes=7)
    assert Card.from_dict(card.to_dict() | {"licence": "CC"}) == card
    with pytest.raises(SourceError, match="2 values, the input 3 channels"):
        Card(input=(3, 4, 4), mean=(0.5,) * 2, std=(0.5,) * 2)
    with pytest.raises(SourceError, match="Did you mean 'bilinear'"):
        Card(interpolation="bilinaer")


def test_unknown_names_suggest_the_near_one() -> None:
    assert (
        unknown("method", "zqa", ["zaq", "zeroq"]) == "unknown method 'zqa'. Did you mean 'zaq'? There is: zaq, zeroq."
    )
    assert "Did you" not in unknown("method", "xyz", ["zaq"])
