"""Small networks behind public reports of other tools' users (`../shared/reports`): right,
or refused before the work."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch

import zaq
from zaq.methods.rtn import RTN


@pytest.fixture(scope="module")
def networks(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reported_networks", shared / "reports" / "networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["names_that_meet", "sub_by_alpha", "sum_pool", "values", "wide_clamp"])
def test_the_file_computes_what_the_network_does(name: str, networks: ModuleType, tmp_path: Path) -> None:
    """25 dB or more on 16 standard normal inputs."""
    net = getattr(networks, name)()
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    zaq.quantize(net, x[:1], "w8a8", RTN()).export(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = net(x).numpy()
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 25
