"""Bits under a budget: the choice against trying them all, the sensitivities against common sense."""

import itertools
import random

import pytest
import torch
from torch.fx import GraphModule
from zoo import CARD, images, traced

from zaq.config.bits import QConfig
from zaq.errors import BitsError
from zaq.ir.nodes import attribute
from zaq.passes.fold import fold
from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.placement import place
from zaq.stats import mixed
from zaq.stats.mixed import Sensitivities, allocate, packed_bytes, sizes


def problem(seed: int, layers: int = 4) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, int]]]:
    """Sizes that grow with bits, sensitivities that mostly fall."""
    draw = random.Random(seed)
    omega, size = {}, {}
    for i in range(layers):
        floor, elements = draw.choice([2, 2, 2, 8]), draw.randint(10, 300)
        size[f"l{i}"] = {b: elements * b // 8 + 7 for b in range(floor, 9)}
        omega[f"l{i}"] = {b: draw.random() * 4.0**-b for b in range(floor, 9)}
    return omega, size


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    omega, size = problem(seed)
    totals = [
        (
            sum(size[n][b] for n, b in zip(size, bits, strict=True)),
            sum(omega[n][b] for n, b in zip(size, bits, strict=True)),
        )
        for bits in itertools.product(*(s for s in size.values()))
    ]
    least, most = min(t[0] for t in totals), max(t[0] for t in totals)
    for target in (least, (2 * least + most) // 3, (least + most) // 2, most, 2 * most):
        choice = allocate(omega, size, target + 100, fixed=100)
        assert choice.omega == pytest.approx(min(o for n, o in totals if n <= target), rel=1e-9)
        assert sum(size[n][b] for n, b in choice.bits.items()) <= target
        assert sum(omega[n][b] for n, b in choice.bits.items()) == pytest.approx(choice.omega)
    for at, best in choice.frontier:
        assert best == pytest.approx(min(o for n, o in totals if n + 100 <= at), rel=1e-9)
    assert choice.frontier == sorted(choice.frontier) and choice.frontier[0][0] == least + 100


def test_coarse_units_stay_inside_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    omega, size = problem(3, layers=8)
    monkeypatch.setattr(mixed, "UNITS", 40)
    floor = sum(min(s.values()) for s in size.values())
    exact_enough = [allocate(omega, size, floor + more) for more in (0, 50, 200, 2000)]
    assert [c.omega for c in exact_enough] == sorted((c.omega for c in exact_enough), reverse=True)
    assert all(
        sum(size[n][b] for n, b in c.bits.items()) <= floor + m
        for c, m in zip(exact_enough, (0, 50, 200, 2000), strict=True)
    )


def test_a_size_that_cannot_be_reached() -> None:
    with pytest.raises(BitsError, match=r"cannot be reached.*\(131 bytes"):
        allocate({"l": {2: 1.0}}, {"l": {2: 31}}, 130, fixed=100)


def test_bytes_by_hand() -> None:
    """stem 3-8, two 8-8, 8-16 (3x3, folded, so with bias), and a 16-5 linear layer; first and last at 8 bits."""
    folded, _ = fold(traced("residual"))
    _, placement = place(folded, QConfig.parse("w2a8"), CARD)
    ends, inner, channels = 9 * 24 + 80, 9 * (64 + 64 + 128), 8 + 8 + 8 + 16 + 5
    assert packed_bytes(folded, placement.weights) == ends + inner // 4 + 8 * channels
    found, biases = sizes(folded, placement.weights)
    assert biases == 4 * channels and [list(s) for s in found.values()] == [
        [8],
        [*range(2, 9)],
        [*range(2, 9)],
        [*range(2, 9)],
        [8],
    ]


def sensitivities(
    teacher: GraphModule, weights: dict[str, FakeQuantize], batch: int = 64
) -> dict[str, dict[int, float]]:
    measured = Sensitivities(teacher, weights, images(8), batch=batch)
    for name in weights:
        measured.measure(name)
    return measured.found


@pytest.mark.parametrize("name", ["residual", "transposed"])  # classes, and images
def test_fewer_bits_hurt_more_and_the_teacher_is_as_it_was(name: str) -> None:
    folded, _ = fold(traced(name))
    before = {k: v.clone() for k, v in folded.state_dict().items()}
    _, placement = place(folded, QConfig(2, 8, None), CARD)
    omega = sensitivities(folded, placement.weights, batch=3)
    assert set(omega) == set(placement.weights)
    assert all(0 < o[8] < o[4] < o[2] for o in omega.values())
    assert all(torch.equal(v, before[k]) for k, v in folded.state_dict().items())
    with torch.no_grad():  # a weight that nothing reads hurts nothing
        dead = next(iter(placement.weights))
        attribute(folded, dead).zero_()
        assert max(sensitivities(folded, placement.weights)[dead].values()) == pytest.approx(0, abs=1e-6)
