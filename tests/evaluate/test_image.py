"""PSNR and SSIM by their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from zaq.config.card import Card
from zaq.errors import DataError
from zaq.evaluate import TASKS
from zaq.evaluate.image import psnr, ssim

CARD = Card(input=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)


def test_psnr_of_known_errors() -> None:
    a = torch.rand(2, 3, 16, 16)
    b = a + torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    assert psnr(a, b, 1.0).tolist() == pytest.approx([20, 20 - 10 * np.log10(4)], abs=1e-3)
    assert psnr(10 * a, 10 * b, 10.0).tolist() == pytest.approx(psnr(a, b, 1.0).tolist(), abs=1e-3)
    assert psnr(a, a, 1.0).tolist() == [100, 100]


def test_ssim_window_by_window() -> None:
    """Against the formula, a window at a time, in numpy."""
    g = torch.Generator().manual_seed(0)
    a = torch.rand(1, 1, 13, 12, generator=g)
    b = (a + 0.2 * torch.randn(a.shape, generator=g)).clamp(0, 1)
    weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    values = []
    for y in range(3):
        for x in range(2):
            p, q = (v[0, 0, y : y + 11, x : x + 11].double().numpy() for v in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = (
                (window * (p - mp) ** 2).sum(),
                (window * (q - mq) ** 2).sum(),
                (window * (p - mp) * (q - mq)).sum(),
            )
            values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert float(ssim(a, b, 1.0)) == pytest.approx(np.mean(values), abs=1e-4)
    assert float(ssim(a, a, 1.0)) == pytest.approx(1)


class Darker(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.9 * x


def test_likeness_to_a_teacher(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    found = TASKS["image"](Darker(), f"images:{tmp_path}", CARD, teacher=nn.Identity())
    assert (
        found.total == 3 and 24 < found.fields()["psnr"] < 26 and 0.95 < found.fields()["ssim"] < 1
    )  # 0.1 x, x of mean square 1/3
    assert TASKS["image"](nn.Identity(), f"images:{tmp_path}", CARD, 2, teacher=nn.Identity()).fields() == {
        "psnr": 100, "ssim": pytest.approx(1), "total": 2}  # fmt: skip
    with pytest.raises(DataError, match="name it with --teacher MODEL"):
        TASKS["image"](Darker(), f"images:{tmp_path}", CARD)
    with pytest.raises(DataError, match=r"needs one output \(N, C, H, W\) of both models"):
        TASKS["image"](nn.Flatten(), f"images:{tmp_path}", CARD, teacher=nn.Identity())
    small = Card(input=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(DataError, match="at least 11"):
        TASKS["image"](Darker(), f"images:{tmp_path}", small, teacher=nn.Identity())
