"""The report's facts: every tensor's grid is the one that its quantizer has."""

import pytest
from zoo import SHAPE, quantized_net

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.methods.rtn import RTN


@pytest.mark.parametrize("weights", ["per_channel_affine", "per_tensor_affine", "per_channel"])
def test_weights_have_their_own_zero_points(weights: str) -> None:
    """As many as scales: near the middle of the range on an affine grid, 0 on a symmetric one."""
    quantized = quantized_net("residual", QConfig.parse("w8a8", weights=weights), RTN(), card=Card(input=SHAPE))
    rows = [t for t in quantized.report["tensors"] if t["kind"] == "weight"]
    assert rows
    for row in rows:
        low, high = row["integers"]
        assert len(row["zero_point"]) == len(row["scale"])
        for scale, zero in zip(row["scale"], row["zero_point"], strict=True):
            assert low <= zero <= high and (low - zero) * scale < 0 < (high - zero) * scale
            assert (zero == 0) == (weights == "per_channel")
