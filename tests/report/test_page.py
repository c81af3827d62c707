"""The page is one file and leaves nothing of a hostile model name unescaped."""

from zoo import SHAPE, quantized_net

from zaq.config.card import Card
from zaq.methods.zaq import ZAQ
from zaq.report.page import render


def test_names_are_escaped_and_missing_parts_are_left_out() -> None:
    card = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
    report = quantized_net("pools", "w4a4", ZAQ(warm_up=1, rounds=1, latent=8, width=8), card=card).report
    report["options"]["source"]["name"] = "<script>alert(1)</script>"
    page = render(report, [], None, card)
    assert "<script>" not in page and "&lt;script&gt;" in page and "Not verified" in page
    assert page.count("data:image/png") == 3  # ranges, weights, SQNR; no losses, no samples
