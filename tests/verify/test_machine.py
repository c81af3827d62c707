"""`zaq doctor`: what this machine computes with, found out by running it."""

import json

import torch
from conftest import zaq_here
from onnx import load_from_string

from zaq.verify.kernels import kernels
from zaq.verify.machine import IntegerKernels, _convolution, integer_kernels


def test_the_convolution_is_integers_where_it_is_quantized() -> None:
    assert kernels(_convolution(True).SerializeToString()).counts["QLinearConv"] == 2
    plain = kernels(_convolution(False).SerializeToString()).counts
    assert "QLinearConv" not in plain and sum(n for name, n in plain.items() if "Conv" in name) == 2
    assert len(load_from_string(_convolution(True).SerializeToString()).graph.node) > 6


def test_it_is_timed() -> None:
    found = integer_kernels()
    assert found == IntegerKernels(True, "QLinearConv", found.integer_ms, found.float_ms)
    assert 0 < found.integer_ms < 1000 and 0 < found.float_ms < 1000


def test_doctor_tells_of_it() -> None:
    done = zaq_here("doctor")
    assert done.exit_code == 0 and "a quantized convolution runs in integers (QLinearConv)" in done.output
    assert f"torch {torch.__version__}" in done.output and "devices: cpu" in done.output
    found = json.loads(zaq_here("doctor", "--json").output)
    assert found["integer kernels"]["used"] is True and found["packages"]["onnxruntime"]
