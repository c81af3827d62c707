"""Units as logical forms over concepts (Mu and Andreas 2020, "Compositional Explanations of Neurons", section 2).

A unit fires where its activation exceeds a threshold of its own. A concept, and a form made of concepts by OR, AND and
AND NOT, holds at some places too. How well a form explains a unit is the intersection of both over their union, summed
over all images. The best form is sought by a beam search, one concept longer at each step.

Places are cells: each pixel of a coarse grid where concepts have a place in the image, else a whole image, in which a
unit fires at a part of the pixels. So a unit is a number from 0 to 1 for each cell, a concept true or false.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FIRING", "Explained", "Form", "Thresholds", "best_forms", "iou"]

FIRING = 0.005  # P(activation > threshold), over the images that are looked at
CELLS = 2**16  # of a matrix of concepts that are floats at once
OPERATIONS = ("OR", "AND", "AND NOT")


@dataclass(frozen=True)
class Form:
    """A first concept, by its number, and what is joined to it, one after another: ((0, ""), (3, "AND NOT")) is
    (0 AND NOT 3)."""

    terms: tuple[tuple[int, str], ...]

    @property
    def length(self) -> int:
        return len(self.terms)

    @property
    def concepts(self) -> frozenset[int]:
        return frozenset(number for number, _ in self.terms)

    def then(self, concept: int, operation: str) -> "Form":
        """This form joined with one more concept."""
        return Form((*self.terms, (concept, operation)))

    def holds(self, concepts: Tensor) -> Tensor:
        """Where it is true: (cells,) of concepts (K, cells), both bool."""
        found = concepts[self.terms[0][0]].clone()
        for number, operation in self.terms[1:]:
            other = concepts[number]
            found = found | other if operation == "OR" else found & (other if operation == "AND" else ~other)
        return found

    def text(self, names: list[str]) -> str:
        """As one writes it: ((cat OR dog) AND NOT indoors)."""
        said = names[self.terms[0][0]]
        for number, operation in self.terms[1:]:
            said = f"({said} {operation} {names[number]})"
        return said


@dataclass(frozen=True)
class Explained:
    """The best form of a unit and its IoU. `form`: None for a unit that no concept shares a cell with, or that never
    fires."""

    form: Form | None
    iou: float


class Thresholds:
    """The threshold of each unit, such that it fires at `FIRING` of all places; of activations that come in batches.

    Only as many of the greatest activations are kept as may fire, and one. Where more places than that share the
    greatest activation (a clamp's end), all of those fire; a unit whose activations are all the same never does.
    """

    def __init__(self, places: int) -> None:
        """places: how many activations of a unit there will be."""
        self.kept = max(int(FIRING * places), 1) + 1
        self.largest: Tensor | None = None
        self.below: Tensor | None = None  # the greatest activation that is less than the greatest

    def see(self, activations: Tensor) -> None:
        """A batch (N, units, H, W)."""
        found = activations.movedim(1, 0).flatten(1)
        if self.largest is not None and self.below is not None:
            found = torch.cat([self.largest, self.below[:, None], found], 1)
        greatest = found.amax(1, keepdim=True)
        self.below = found.masked_fill(found == greatest, -math.inf).amax(1)
        if self.largest is not None:  # what stands for itself alone is counted once
            found = torch.cat([found[:, : self.largest.shape[1]], found[:, self.largest.shape[1] + 1 :]], 1)
        self.largest = found.topk(min(self.kept, found.shape[1]), 1).values

    def values(self) -> Tensor:
        """(units,): what is exceeded where a unit fires."""
        assert self.largest is not None and self.below is not None
        saturated = (self.largest[:, -1] == self.largest[:, 0]) & self.below.isfinite()
        return torch.where(saturated, self.below, self.largest[:, -1])


def iou(unit: Tensor, holds: Tensor) -> float:
    """Intersection over union of a unit (cells,), from 0 to 1 each, and where a form holds (cells,), bool."""
    inside = float(unit[holds].double().sum())
    return _over_union(inside, float(unit.double().sum()), float(holds.sum()))


def best_forms(unit: Tensor, concepts: Tensor, length: int = 3, beam: int = 5) -> Explained:
    """The form of at most so many concepts that explains a unit best.

    unit: (cells,), the part of each cell at which it fires. concepts: (K, cells), bool.
    Begins with the `beam` best single concepts; then each of the beam is joined with every concept by OR, AND and AND
    NOT, and the best `beam` are kept, shorter ones among them. Of equal ones the shorter wins.
    """
    fires = float(unit.double().sum())
    inside, size = _sums(concepts, torch.stack([unit, torch.ones_like(unit)]))
    scores = [_over_union(i, fires, s) for i, s in zip(inside.tolist(), size.tolist(), strict=True)]
    found = {Form(((number, ""),)): score for number, score in enumerate(scores) if score > 0}
    kept = _best(found, beam)
    for _ in range(length - 1):
        longer = dict(kept)
        for form in kept:
            longer |= _joined(form, unit, concepts, inside, size, fires)
        kept = _best(longer, beam)
    if not kept:
        return Explained(None, 0.0)
    form = next(iter(kept))
    return Explained(form, kept[form])


def _best(found: dict[Form, float], beam: int) -> dict[Form, float]:
    """The best of them, best first; those that are as good and shorter before the longer."""
    order = sorted(found, key=lambda form: (-found[form], form.length, form.terms))
    return {form: found[form] for form in order[:beam]}


def _joined(
    form: Form, unit: Tensor, concepts: Tensor, inside: Tensor, size: Tensor, fires: float
) -> dict[Form, float]:
    """A form with each concept that it has not, by each operation, and their IoU.

    inside, size: of each concept alone, what of the unit it covers and how many cells. Of the conjunctions both are
    summed up; those of OR and AND NOT follow from them.
    """
    holds = form.holds(concepts)
    own, cells = float(unit[holds].double().sum()), float(holds.sum())
    both, common = _sums(concepts, torch.stack([unit * holds, holds.to(unit.dtype)]))
    sums = {
        "OR": (own + inside - both, cells + size - common),
        "AND": (both, common),
        "AND NOT": (own - both, cells - common),
    }
    return {
        form.then(number, operation): _over_union(covered, fires, area)
        for operation in OPERATIONS
        for number, (covered, area) in enumerate(zip(*(s.tolist() for s in sums[operation]), strict=True))
        if number not in form.concepts
    }


def _sums(concepts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of each concept (K, cells) the sum of both weights (2, cells) where it holds: (K,) each, in float64."""
    total = torch.zeros(len(concepts), 2, dtype=torch.float64)
    for part, weight in zip(concepts.split(CELLS, 1), weights.split(CELLS, 1), strict=True):
        total += part.double() @ weight.T.double()
    return total[:, 0], total[:, 1]


def _over_union(inside: float, fires: float, holds: float) -> float:
    union = fires + holds - inside
    return inside / union if union > 0 else 0.0
