"""The laboratory's parts from the command line: at work, refused where they make no sense, and interrupted."""

import json
from pathlib import Path

import pytest
import torch
from conftest import QUICK, zaq_here
from torch import nn
from zoo import CARD, Impatient, images, quantized_like, quantized_net

from zaq.methods.zaq import ZAQ

GAME = ("zaq.balance=began", "zaq.keep=m_global", "zaq.unroll=1", "zaq.q_steps=1", "zaq.lambda_k=1")


def test_all_of_them_in_the_recipe(model: Path, tmp_path: Path) -> None:
    """BigGAN's generator, truncated, and a game that is balanced, unrolled and watched."""
    settings = ("generator=biggan", "truncation=1", "game=1", *GAME)
    options = (part for setting in settings for part in ("-s", setting))
    done = zaq_here("quantize", model, "--bits", "w4a4", *QUICK, *options, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["options"]["method"]["generator"] == "biggan"
    assert [s["name"] for s in report["stages"] if s["name"] == "zaq" and s["steps"] == 1]
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all("orthogonal" in r for r in rows if r["stage"] == "synthesis")
    last = [r for r in rows if r["stage"] == "zaq"][-1]
    assert {"k", "m_global", "d_easy", "d_hard"} <= set(last) and any(k.startswith("sigma 1 of student") for k in last)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Singular values of the weights that grew most" in page and page.count("<figcaption>") > 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("generator=bigan",), "unknown generator 'bigan'. Did you mean 'biggan'?"),
        (("truncation=0",), "truncation is 0.0; a number above 0 or none is expected"),
        (("truncation=1",), "the generator painter starts from no normal numbers; biggan or dcgan does"),
        (("generator=dcgan", "cycle=10"), "the generator dcgan starts from no canvas; painter does"),
        (("zaq.balance=begin",), "unknown balance 'begin'. Did you mean 'began'?"),
        (("zaq.unroll=-1",), "unroll is -1; a whole number from 0"),
        (("unrol=1",), "unknown setting of flagship 'unrol'"),
    ],
)
def test_what_cannot_be_is_a_sentence(model: Path, tmp_path: Path, settings: tuple[str, ...], said: str) -> None:
    options = [part for setting in settings for part in ("-s", setting)]
    done = zaq_here("quantize", model, "--bits", "w4a4", *QUICK, *options, "-o", tmp_path / "out")
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("zaq: ") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_network_with_neither_batch_norm_nor_classes_can_have_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    method = ZAQ(warm_up=2, rounds=2, latent=8, width=8, generator="biggan", balance="began", unroll=1, q_steps=1)
    made = quantized_like(net, images(1), "w4a4", method, card=CARD)
    assert made.report["stages"][-1]["steps"] == 2 and not made.state.generator.classes
    assert torch.isfinite(made.module(images(2))).all()


def test_ctrl_c_keeps_the_last_whole_round() -> None:
    method = ZAQ(
        warm_up=2, rounds=4, latent=8, width=8, q_steps=1,
        generator="biggan", balance="began", keep="m_global", unroll=1,
    )  # fmt: skip
    stage = quantized_net("residual", "w4a4", method, card=CARD, progress=Impatient("zaq", 2)).report["stages"][-1]
    assert stage["note"].startswith("interrupted after step 2 of 4") and stage["loss_after"] is not None
