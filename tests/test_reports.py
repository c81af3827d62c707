"""Small networks behind public reports of other tools' users (`../shared/reports`): right,
or refused before the work."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree
from zoo import quantized_like

import zaq
from zaq.engine.stage import Stage
from zaq.engine.task import Task
from zaq.errors import TraceError
from zaq.methods.rtn import RTN

Array = NDArray[Any]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of torch, run in float


@pytest.fixture(scope="module")
def networks(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reported_networks", shared / "reports" / "networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NEAR = [
    "buffer_called_mean", "gate_by_mask", "infinite_mask", "names_that_do_not_meet", "names_that_meet",
    "no_grad_forward", "same_padding", "sub_by_alpha", "sum_pool", "values", "wide_clamp",
]  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_the_file_computes_what_the_network_does(name: str, networks: ModuleType, tmp_path: Path) -> None:
    """25 dB or more on 16 standard normal inputs."""
    (wanted,), (found,), _ = quantized(getattr(networks, name)(), tmp_path)
    assert decibels(wanted, found) > 25


def quantized(net: nn.Module, folder: Path) -> tuple[list[Array], list[Array], dict[str, Any]]:
    """What the network and its file give for 16 standard normal inputs; and the report."""
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    made = quantized_like(net, x[:1], "w8a8", RTN())
    made.export(folder / "net.onnx")
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = [t.numpy() for t in pytree.tree_leaves(net(x))]
    return wanted, session.run(None, {session.get_inputs()[0].name: x.numpy()}), made.report


def decibels(wanted: Array, found: Array) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


def test_the_same_padding_is_no_reason_to_compute_in_float(networks: ModuleType, tmp_path: Path) -> None:
    _, _, report = quantized(networks.same_padding(), tmp_path)
    assert not report["in_float"] and not [n for n in report["notes"] if "batch_norm" in n]


def test_labels_are_labels(networks: ModuleType, tmp_path: Path) -> None:
    (wanted,), (found,), report = quantized(networks.label_map(), tmp_path)
    assert found.dtype == np.int64 and (wanted == found).mean() > 0.95
    assert report["agreement"]["outputs"][0]["equal"] > 0.95 and report["agreement"]["output_sqnr"] > 25


def test_a_constant_passes_through(networks: ModuleType, tmp_path: Path) -> None:
    (scores, anchors), (found, passed), _ = quantized(networks.anchors_out(), tmp_path)
    assert decibels(scores, found) > 25 and (anchors == passed).all()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cond_conv", r"has no form in ONNX: conv2d_1 .*a size that depends on the batch"),
        ("flip_test", r"cannot be exported: it works for some batch sizes alone"),
        ("shrink_bicubic", r"onnxruntime does not run the model's file: upsample_bicubic2d .*'Cubic' mode only"),
    ],
)
def test_what_has_no_file_is_refused_before_the_work(name: str, told: str, networks: ModuleType) -> None:
    class Worked(RTN):
        def stages(self, task: Task) -> list[Stage]:
            raise AssertionError("the work has begun")

    with pytest.raises(TraceError, match=told):
        zaq.quantize(getattr(networks, name)(), torch.zeros(1, 3, 16, 16), "w8a8", Worked())
