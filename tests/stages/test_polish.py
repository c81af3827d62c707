"""Distillation: a step of few images moves ranges and no weights; what it is judged by falls."""

import pytest
import torch
from zoo import calibrated, images

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.quant.op import along
from zaq.stages.polish import Polish
from zaq.stages.training import gain_optimizer
from zaq.synth.losses import relative_discrepancy


@pytest.mark.parametrize("enough", [16, 10**6])
def test_a_step_of_few_images_rounds_no_weight_anew(enough: int) -> None:
    state, journal = calibrated("residual"), Journal()
    placed = state.student.placement

    def codes() -> list[torch.Tensor]:
        weights = [(q, state.student.weight(name)) for name, q in placed.weights.items()]
        return [(q.on_grid(w) / along(q.scale, w, q.axis)).round() for q, w in weights]

    state.student.settle()
    before, ranges = codes(), [q.scale.detach().clone() for q in placed.weights.values()]
    run_stages([Polish(steps=20, enough=enough)], state, journal)
    assert journal.records[0].kept and (journal.records[0].loss_after or 1) < (journal.records[0].loss_before or 0)
    same = [torch.equal(a, b) for a, b in zip(before, codes(), strict=True)]
    assert all(same) if enough > 16 else not all(same)
    assert all(not torch.equal(a, q.scale) for a, q in zip(ranges, placed.weights.values(), strict=True))
    learned = [q for q in placed.activations.values() if not q.guaranteed]
    assert learned and all(q.scale.grad is not None for q in learned), "their ranges do"


def test_a_gain_goes_down_the_slope_of_its_scale_with_the_codes_held() -> None:
    state, x = calibrated("residual"), images(8)
    for quantizer in state.student.placement.activations.values():
        quantizer.disable_fake_quant()  # only so is there a slope to compare with
    optimizer = gain_optimizer(state.student, 0.0, 0.0)
    state.student(x).square().mean().backward()
    optimizer.step()
    for name, quantizer in state.student.placement.weights.items():
        weight, scale, slope = state.student.weight(name), quantizer.scale, quantizer.scale.grad
        assert slope is not None
        channel = int((slope * scale).abs().argmax())
        found, held = list[float](), (weight.detach().clone(), scale.detach().clone())
        for gain in (1.01, 0.99):
            with torch.no_grad():
                weight[channel] *= gain
                scale[channel] *= gain
                found.append(float(state.student(x).double().square().mean()))
                weight.copy_(held[0])
                scale.copy_(held[1])
        assert float(slope[channel] * scale[channel]) == pytest.approx((found[0] - found[1]) / 0.02, rel=0.02)


@pytest.mark.parametrize("feature", [0.0, 0.5])
def test_the_loss_is_that_of_outputs_and_feature_maps(feature: float) -> None:
    state, journal, x = calibrated("residual"), Journal(), images(64)

    class Source:
        def draw(self, count: int, unpainted: float) -> torch.Tensor:
            return x[:count]

    state.generator = Source()
    with torch.no_grad():
        part = x[: state.task.batch]
        (p, a), (q, b) = state.task.teacher_at(state.task.taps)(part), state.student_at(state.task.taps)(part)
        gaps = [float((v - u).pow(2).mean() / u.var()) for u, v in zip(a, b, strict=True)]
        expected = float(relative_discrepancy(p, q)) + feature * sum(gaps)
    run_stages([Polish(steps=1, drawn=True, feature=feature)], state, journal)
    assert len(gaps) > 1 and min(gaps) > 1e-4
    assert journal.log.rows[0]["loss_q"] == pytest.approx(expected, rel=1e-4)


def test_images_that_were_given_are_looked_at_shifted() -> None:
    state, x = calibrated("residual"), images(64)
    torch.manual_seed(0)
    looked = torch.cat([Polish()._images(state) for _ in range(4)])
    pixels = {tuple(image.flatten().sort().values.tolist()) for image in x}
    assert all(tuple(image.flatten().sort().values.tolist()) in pixels for image in looked), "no new pixels"
    moved = [not bool((image == x).flatten(1).all(1).any()) for image in looked]
    assert 0.3 < sum(moved) / len(moved) < 1, "some as they were, most by a pixel"


def test_images_are_drawn_anew_where_pixels_were_not_moved() -> None:
    state, drawn = calibrated("residual"), []

    class Source:
        def draw(self, count: int, unpainted: float) -> torch.Tensor:
            drawn.append((count, unpainted))
            return torch.randn(count, *state.task.card.input)

    state.generator = Source()
    run_stages([Polish(steps=3, drawn=True, unpainted=0.25)], state, Journal())
    assert drawn == [(state.task.batch, 0.25)] * 3
    run_stages([Polish(steps=3)], state, Journal())
    assert len(drawn) == 3
