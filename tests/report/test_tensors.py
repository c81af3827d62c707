"""Histograms of tensors against numpy, and the names of the user's modules."""

import numpy as np
import pytest
import torch
from zoo import CARD, quantized_net

from zaq.methods.zeroq import ZeroQ
from zaq.quant.fake_quantize import FakeQuantize
from zaq.report.tensors import BINS, histogram


@pytest.mark.parametrize("axis", [-1, 0])
def test_what_is_clipped_and_where_it_lies(axis: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(4, 500) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    quantizer = FakeQuantize(4, axis, 4 if axis == 0 else 1, signed=True)
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4]) if axis == 0 else torch.tensor([0.3])
    quantizer.set_qparams(scale, torch.zeros(len(scale), dtype=torch.int32))
    found = histogram(quantizer, values, quantizer(values))
    steps = (values / scale.view(-1, 1)).numpy()
    codes = np.clip(np.round(steps), quantizer.quant_min, quantizer.quant_max)
    clipped = np.mean((steps < quantizer.quant_min - 0.5) | (steps > quantizer.quant_max + 0.5))
    assert clipped > 0.1 and found["clipped"] == pytest.approx(float(clipped), abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((steps.min(), steps.max()), rel=1e-5)
    for name, wanted in (("before", steps), ("after", codes)):
        counts = np.histogram(wanted, BINS, (found["low"], found["high"]))[0]
        assert sum(found[name]) == 2000 and np.abs(np.array(found[name]) - counts).sum() <= 4  # at the bins' ends


def test_every_tensor_names_its_module() -> None:
    rows = quantized_net("residual", "w4a4", ZeroQ(batch=8, steps=8), card=CARD).report["tensors"]
    modules = {row["name"]: row["module"] for row in rows}
    assert modules["stem.0.weight"] == "stem.0" and "stem.2" in modules.values() and "down.2" in modules.values()
    assert all("histogram" in row for row in rows if row["kind"] == "weight")
    assert all("histogram" in row for row in rows if row["kind"] == "activation" and "seen_low" in row)
