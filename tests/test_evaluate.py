"""Scores: the interval is the binomial's, and a model without classes is refused."""

from pathlib import Path

import pytest
from zoo import SHAPE, build, images

import zaq
from zaq.config import Card
from zaq.errors import DataError
from zaq.evaluate import Score, top1
from zaq.methods.zaq import ZAQ


def test_interval_of_ten_thousand_images() -> None:
    score = Score(9000, 10000)
    assert score.percent == 90 and score.interval == pytest.approx(0.588, abs=1e-3)
    assert str(score) == "top-1 90.00 % (+-0.59, 9000 of 10000 images)"


def test_top1_needs_classes(tmp_path: Path) -> None:
    card = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
    quantized = zaq.quantize(build("transposed"), images(1), "w8a8", ZAQ(warm_up=0, rounds=0, latent=16, width=16), card=card)
    quantized.export(tmp_path / "model.onnx")
    with pytest.raises(DataError, match=r"top-1 needs one output \(N, classes\)"):
        top1(tmp_path / "model.onnx", "cifar10:/nowhere", card)
