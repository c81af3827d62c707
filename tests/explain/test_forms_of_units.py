"""Forms against an independent count, and the search against all forms there are."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from zaq.explain import formulas
from zaq.explain.explain import firing
from zaq.explain.formulas import FIRING, OPERATIONS, Form, Thresholds, best_forms, iou

NAMES = ["A", "B", "C", "D"]


def drawn(seed: int, concepts: int = 4, cells: int = 200) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.rand(cells) * (torch.rand(cells) < 0.4), torch.rand(concepts, cells) < 0.4


def counted(unit: Tensor, holds: Tensor) -> float:
    """Cell by cell."""
    inside = union = 0.0
    for fires, there in zip(unit.tolist(), holds.tolist(), strict=True):
        inside += fires if there else 0
        union += 1 if there else fires
    return inside / union


def all_forms(count: int, length: int) -> list[Form]:
    found = [Form(((n, ""),)) for n in range(count)]
    for form, n, operation in itertools.product(list(found), range(count), OPERATIONS if length > 1 else ()):
        if n not in form.concepts:
            found.append(form.then(n, operation))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_what_trying_all_finds(seed: int) -> None:
    unit, concepts = drawn(seed)
    best = max(counted(unit, form.holds(concepts)) for form in all_forms(4, 2))
    found = best_forms(unit, concepts, length=2, beam=100)
    assert found.form is not None and found.iou == pytest.approx(best, rel=1e-5)
    assert counted(unit, found.form.holds(concepts)) == pytest.approx(found.iou, rel=1e-5)
    assert iou(unit, found.form.holds(concepts)) == pytest.approx(found.iou, rel=1e-5)


@pytest.mark.parametrize(("text", "make"), [
    ("(A AND NOT B)", lambda c: c[0] & ~c[1]),
    ("(A OR C)", lambda c: c[0] | c[2]),
    ("(B AND D)", lambda c: c[1] & c[3]),
    ("((A OR B) AND NOT C)", lambda c: (c[0] | c[1]) & ~c[2]),
    ("D", lambda c: c[3]),
])  # fmt: skip
def test_a_unit_is_explained_as_what_it_is(text: str, make: object) -> None:
    _, concepts = drawn(0, cells=2000)
    found = best_forms(make(concepts).float(), concepts)  # type: ignore[operator]
    assert found.iou == 1.0 and found.form is not None and found.form.text(NAMES) == text


def test_a_narrow_beam_of_one_is_greedy_and_never_better() -> None:
    unit, concepts = drawn(3)
    narrow, wide = (best_forms(unit, concepts, beam=beam).iou for beam in (1, 5))
    assert iou(unit, concepts[0]) <= narrow <= wide


def test_parts_of_the_cells_are_summed_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, concepts = drawn(1)
    whole = best_forms(unit, concepts)
    monkeypatch.setattr(formulas, "CELLS", 17)
    assert best_forms(unit, concepts) == whole


def test_a_dead_unit_has_no_form() -> None:
    _, concepts = drawn(2)
    assert best_forms(torch.zeros(200), concepts) == formulas.Explained(None, 0.0)


def test_units_fire_at_their_share_of_all_places() -> None:
    torch.manual_seed(0)
    activations = torch.randn(30, 6, 20, 20)
    thresholds = Thresholds(30 * 400)
    for part in activations.split(7):
        thresholds.see(part)
    over = (activations > thresholds.values()[:, None, None]).float().mean((0, 2, 3))
    assert over.tolist() == pytest.approx([FIRING] * 6)
    flat = activations.movedim(1, 0).flatten(1).numpy()
    assert (thresholds.values().numpy() == np.sort(flat)[:, -61]).all()


@pytest.mark.parametrize(("values", "share"), [
    ([0.0] * 998 + [1.0, 2.0], 0.002),  # fewer are above 0 than may fire
    ([0.0] * 900 + [6.0] * 100, 0.1),  # a clamp's end
    ([0.0] * 500 + [5.0] * 400 + [6.0] * 100, 0.1),
    ([3.0] * 1000, 0.0),
])  # fmt: skip
@pytest.mark.parametrize("size", [1, 3, 10])
def test_equal_activations(values: list[float], share: float, size: int) -> None:
    shuffled = torch.tensor(values)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    activations = shuffled.view(10, 1, 10, 10)
    thresholds = Thresholds(1000)
    for part in activations.split(size):
        thresholds.see(part)
    assert float((activations > thresholds.values()).float().mean()) == pytest.approx(share)


def test_cells_of_a_place_an_image_and_a_grid() -> None:
    units = torch.zeros(2, 1, 4, 4)
    units[0, 0, :2] = 1.0
    limits = torch.tensor([0.5])
    assert firing(units, limits, None).tolist() == [[1.0] * 8 + [0.0] * 24]
    assert firing(units, limits, 1).tolist() == [[0.5, 0.0]]
    fine = firing(units, limits, 8)
    assert fine.shape == (1, 128) and fine[0, :32].all() and not fine[0, 40:].any()
