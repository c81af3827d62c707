"""Weights stored in 8 bits of layers that compute in float: the same floats, in a file of a quarter of the size."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from zoo import CARD, SHAPE, images, quantized_net

import zaq
from zaq.config.bits import QConfig
from zaq.cost.deployment import deployment
from zaq.export.session import run_session, session
from zaq.methods.rtn import RTN
from zaq.quant.stored import LARGEST, rounded
from zaq.verify.kernels import kernels


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_is_within_half_a_step_and_stays(axis: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 6, 3, 3) * torch.logspace(-30, 6, 8)[:, None, None, None]
    weight[3] = 0
    found = rounded(weight, axis)
    reach = weight.movedim(axis, 0).flatten(1).abs().amax(1)
    step = reach / LARGEST * (1 + 2**-15)
    assert bool(((found - weight).abs().movedim(axis, 0).flatten(1) <= step[:, None] / 2).all())
    assert torch.equal(rounded(found, axis), found) and not torch.equal(found, weight)
    assert len(found.movedim(axis, 0)[0].unique()) <= 2 * LARGEST + 1


def quantized(name: str, layers: dict[str, str]) -> zaq.Quantized:
    return quantized_net(name, QConfig.parse("w8a8", layers=layers), RTN(), card=CARD)


@pytest.mark.parametrize(("name", "first"), [("residual", "stem.*"), ("transposed", "down.*")])
def test_the_file_has_the_checkpoints_weights_in_bytes(name: str, first: str, tmp_path: Path) -> None:
    found = quantized(name, {".*": "stored", first: "8"})
    found.export(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    integers = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_integers")}
    scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_weight_scale")}
    assert integers and all(v.dtype == np.int8 for v in integers.values())
    stored = [
        torch.from_numpy(integers[f"{n.removesuffix('_scale')}_integers"].astype(np.float32) * s)
        for n, s in scales.items()
    ]
    own = [p.detach() for p in found.module.parameters() if p.dim() > 1]
    own += [p.T for p in own if p.dim() == 2]  # a linear layer's may lie the other way round
    assert all(any(s.shape == p.shape and torch.equal(s, p) for p in own) for s in stored)
    x = images(4)
    wanted, (got,) = found.module(x), run_session(session(tmp_path / "model.onnx"), x)[:1]
    assert (wanted - torch.from_numpy(got)).abs().max() <= 0.02 * wanted.abs().max()
    float_kernels = {"Conv", "FusedConv", "ConvTranspose"}
    assert float_kernels.intersection(kernels(tmp_path / "model.onnx").counts)
    assert "Cast" not in kernels(tmp_path / "model.onnx").counts  # computed once, when the file is loaded


def test_a_stored_layer_between_integers_computes_in_float(tmp_path: Path) -> None:
    """onnxruntime would round such a weight anew, and compute in integers."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    found = zaq.quantize(net.eval(), images(2), QConfig.parse("w8a8", layers={"2": "stored"}), RTN())
    found.export(tmp_path / "model.onnx")
    counts = kernels(tmp_path / "model.onnx").counts
    assert counts.get("QLinearConv", 0) == 2 and counts.get("Conv", 0) + counts.get("FusedConv", 0) == 1, counts


def test_floats_that_are_no_steps_stay_floats(tmp_path: Path) -> None:
    quantized("residual", {".*": "float", "head.*": "8"}).export(tmp_path / "float.onnx")
    names = [t.name for t in onnx.load(tmp_path / "float.onnx").graph.initializer]
    assert not [n for n in names if n.endswith("_integers")]
    quantized("residual", {".*": "stored", "head.*": "8"}).export(tmp_path / "stored.onnx")
    costs = [deployment(tmp_path / f"{n}.onnx", SHAPE) for n in ("stored", "float")]
    assert costs[0].weights < 0.3 * costs[1].weights and costs[0].integer_macs == costs[1].integer_macs
    small, large = ((tmp_path / f"{n}.onnx").stat().st_size for n in ("stored", "float"))
    assert small < 0.75 * large


def test_a_run_of_it_is_verified(tmp_path: Path) -> None:
    found = quantized("residual", {".*": "stored", "head.*": "8"})
    found.save(tmp_path / "run")
    again = zaq.load(tmp_path / "run")
    assert again.report["parity"]["top1_agreement"] == 1.0
    assert torch.equal(again.module(images(3)), found.module(images(3)))
    assert again.card.input == SHAPE
