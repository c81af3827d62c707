"""DeepInversion: images of classes, a second round against the student,
and fine-tuning that is kept only if it helps."""

import pytest
import torch
from torch import nn
from zoo import CARD, build, images, quantized_like, quantized_net

from zaq.errors import BitsError, SourceError
from zaq.methods.deepinversion import DeepInversion

QUICK = DeepInversion(steps=3, images=8, finetune=5)


@pytest.mark.parametrize("name", ["residual", "transposed", "no_batch_norm"])
def test_structures_can_be_quantized(name: str) -> None:
    quantized = quantized_net(name, "w8a8", QUICK, card=CARD)
    assert quantized.report["agreement"]["output_sqnr"] > 15
    names = [s["name"] for s in quantized.report["stages"]]
    assert names == [
        n for n in ("distil", "calibrate", "compete", "finetune") if name != "transposed" or n != "compete"
    ]
    low, high = CARD.bounds()
    samples = quantized.state.samples
    assert samples is not None and (samples >= low).all() and (samples <= high).all()


def test_images_become_their_classes() -> None:
    """A network whose classes are the three colours is shown all of them."""
    layers = (
        nn.Conv2d(3, 3, 1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )
    net = nn.Sequential(*layers)
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])  # type: ignore[operator]
        net[5].weight.copy_(4 * torch.eye(3))  # type: ignore[operator]
    method = DeepInversion(steps=60, images=12, feature=0.1, finetune=0)
    quantized = quantized_like(net.eval(), images(1), "w8a8", method, card=CARD)
    rows = quantized.journal.log.rows
    assert rows[-1]["cross_entropy"] < 0.5 * rows[0]["cross_entropy"]
    assert [s["name"] for s in quantized.report["stages"]] == ["distil", "calibrate"]
    assert quantized.state.samples is not None
    with torch.no_grad():
        assert net(quantized.state.samples).argmax(1).bincount(minlength=3).min() > 2


def test_fine_tuning_brings_the_student_closer_on_images_it_did_not_see() -> None:
    report = quantized_net("residual", "w3a3", DeepInversion(steps=5, images=32, finetune=40), card=CARD).report
    stage = report["stages"][-1]
    assert stage["name"] == "finetune" and stage["kept"] and stage["loss_after"] < stage["loss_before"]
    assert report["agreement"]["samples"] == 16  # a quarter of two rounds


def test_the_second_round_competes() -> None:
    """Student and teacher differ more on images that were drawn for it, all else equal."""
    model = build("residual")
    with torch.no_grad():
        model.head[2].weight.mul_(20)  # type: ignore[index, operator, union-attr]
    gaps = []
    for competition in (1e-6, 1e4):
        method = DeepInversion(steps=15, images=8, lr=0.2, competition=competition, feature=0.0, finetune=5)
        rows = quantized_like(model, images(1), "w2a2", method, card=CARD).journal.log.rows
        last = [r for r in rows if r["stage"] == "compete"][-1]
        gaps.append(1 - last["compete"] / competition)
    assert gaps[1] > 1.2 * gaps[0] > 0


def test_a_seed_repeats_bit_for_bit() -> None:
    a, b = (quantized_net("mean_head", "w4a4", QUICK, card=CARD, seed=3) for _ in range(2))
    assert all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())


def test_what_it_cannot_do_is_a_sentence() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    with pytest.raises(SourceError, match="--method zaq does without"):
        quantized_like(net, images(1), "w8a8", QUICK, card=CARD)
    with pytest.raises(BitsError, match="Did you mean 'minmax'"):
        DeepInversion(observer="minmx")
