"""ZeroQ: images with the statistics of batch norm, and bits of each layer under a budget."""

import json
from pathlib import Path

import pytest
from conftest import zaq as command
from zoo import CARD, SHAPE, quantized_net

from zaq.config.bits import QConfig
from zaq.errors import BitsError, SourceError
from zaq.methods.zaq import ZAQ
from zaq.methods.zeroq import ZeroQ
from zaq.report.page import render

QUICK = ZeroQ(batch=8, steps=20)


@pytest.mark.parametrize("name", ["depthwise", "functional_batch_norm", "signed", "transposed"])
def test_structures_with_batch_norm_can_be_quantized(name: str) -> None:
    quantized = quantized_net(name, "w8a8", ZeroQ(batch=8, steps=8), card=CARD)
    assert [s["name"] for s in quantized.report["stages"]] == ["distil", "calibrate"]
    assert quantized.report["agreement"]["output_sqnr"] > 15
    low, high = CARD.bounds()
    samples = quantized.state.samples
    assert samples is not None and samples.shape == (8, *SHAPE) and (samples >= low).all() and (samples <= high).all()


def test_the_statistics_come_closer() -> None:
    rows = quantized_net("residual", "w8a8", ZeroQ(batch=8, steps=60), card=CARD).journal.log.rows
    assert rows[-1]["layers"] < 0.5 * rows[0]["layers"]


def test_without_batch_norm_it_says_what_does_without() -> None:
    with pytest.raises(SourceError, match="--method zaq needs none"):
        quantized_net("no_batch_norm", "w8a8", QUICK, card=CARD)


def test_weights_are_rounded_as_they_are() -> None:
    quantized = quantized_net("residual", "w4a4", QUICK, card=CARD)
    state = quantized.module.state_dict()
    assert all((state[name] == value).all() for name, value in quantized.teacher.state_dict().items())
    for name, quantizer in quantized.student.placement.weights.items():
        largest = state[name].transpose(0, quantizer.axis).flatten(1).abs().amax(1)
        assert (quantizer.scale >= 0.999 * largest / quantizer.quant_max).all()


def test_mixed_bits_stay_inside_their_size_and_cost_less_than_equal_ones() -> None:
    equal = quantized_net("residual", "w4a8", QUICK, card=CARD)
    target = equal.report["weight_bytes"]
    quantized = quantized_net("residual", QConfig.parse("mixed", target_size=target), QUICK, card=CARD)
    report = quantized.report
    assert report["weight_bytes"] <= target and report["frontier"] and len(set(report["layer_bits"].values())) > 1
    assert report["layer_bits"] == {t["name"]: t["bits"] for t in report["tensors"] if t["kind"] == "weight"}
    bits = list(report["layer_bits"].values())
    assert bits[0] == bits[-1] == 8  # first and last layer
    assert report["agreement"]["output_sqnr"] > equal.report["agreement"]["output_sqnr"]
    assert "the size that was taken" in render(report, [], None, CARD)


def test_sizes_that_cannot_be_and_methods_that_do_not_mix() -> None:
    with pytest.raises(BitsError, match=r"0.0001049 MB cannot be reached.* MB \(\d+ bytes"):
        quantized_net("residual", QConfig.parse("mixed", target_size=110), QUICK, card=CARD)
    with pytest.raises(BitsError, match="goes with --method flagship or zeroq"):
        quantized_net("residual", QConfig.parse("mixed", target_size=10000), ZAQ(), card=CARD)


@pytest.mark.slow  # the method alone meets it above
def test_the_command_meets_the_size(tmp_path: Path) -> None:
    size = ("--bits", "mixed", "--target-size", "0.2MB")
    done = command(
        "quantize",
        *size,
        "--method",
        "zeroq",
        "--effort",
        "fast",
        "-s",
        "steps=4",
        "-s",
        "batch=8",
        "-o",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0.95 * 0.2 * 2**20 < report["weight_bytes"] <= 0.2 * 2**20 and "of 0.20 MB" in done.stdout
    assert report["parity"]["top1_agreement"] > 0.9
    assert report["frontier"][0][0] < report["weight_bytes"] < report["frontier"][-1][0]
