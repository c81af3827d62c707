"""What computes in float is named, and why."""

from pathlib import Path

import pytest
from zoo import SHAPE, quantized_net

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.methods.rtn import RTN
from zaq.verify.kernels import kernels


def of(name: str, folder: Path, **choices: str) -> list[str]:
    quantized = quantized_net(name, QConfig.parse("w8a8", **choices), RTN(), card=Card(input=SHAPE))  # type: ignore[arg-type]
    quantized.export(folder / "model.onnx")
    return [str(n) for n in kernels(folder / "model.onnx").in_float]


@pytest.mark.parametrize("name", ["residual", "concat", "pools", "mean_head"])
def test_nothing_computes_in_float(name: str, tmp_path: Path) -> None:
    assert of(name, tmp_path) == []


def test_what_has_no_integer_kernel_says_so(tmp_path: Path) -> None:
    line, _ = of("transposed", tmp_path)  # and the tanh behind it
    assert line.startswith("ConvTranspose ") and "no integer kernel" in line


def test_what_a_protocol_leaves_in_float_says_what_it_reads_or_writes(tmp_path: Path) -> None:
    lines = of("residual", tmp_path, placement="gdfq")
    assert any("which nothing quantizes" in line for line in lines), lines


def test_weights_without_an_integer_form_are_named(tmp_path: Path) -> None:
    lines = of("grouped", tmp_path, weights="per_channel_affine")
    assert any("no 8-bit integer form" in line or "does not fuse" in line for line in lines), lines
