"""Which units of a run's networks see what, before and after quantization.

Asks of a teacher and its student what Mu and Andreas asked of networks: has a unit the same form as before, what
became of the concepts, and is the network more accurate where units fire that a form explains well (section 4)?
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F

from zaq.api import teacher_of
from zaq.engine.progress import Progress
from zaq.errors import SourceError, UserError
from zaq.explain.concepts import Probe, probe_of, probe_of_run
from zaq.explain.formulas import Explained, Form, Thresholds, best_forms, iou
from zaq.explain.layers import layer_pair
from zaq.ir.taps import with_taps
from zaq.run import TEACHER, Run

__all__ = ["STATES", "Changes", "Excited", "Unit", "explain", "firing"]

BATCH = 64
LEAST = 8  # images: with fewer, 0.5 % of the places are a handful
FELL = 0.5  # of its IoU with the teacher's form: below, a unit has lost it
KEPT, CHANGED, LOST, NONE = STATES = "kept", "changed", "lost", "none before"
NETWORKS = ("float", "quantized")


@dataclass(frozen=True)
class Unit:
    """A channel of the layer. `still`: the IoU of the student's unit with the teacher's form. `right`: the part of the
    images in which it fires that the network gets right, teacher and student; None where nothing is known of that."""

    number: int
    before: str | None
    iou_before: float
    after: str | None
    iou_after: float
    still: float
    state: str
    right: tuple[float | None, float | None]


@dataclass(frozen=True)
class Changes:
    """What became of a layer's units. concepts: name -> the sum over units of IoU with it alone, before and after.
    correlation: Pearson's r, over units, of IoU with how often the network is right where the unit fires; teacher,
    student, over how many units.
    """

    layer: str
    data: str | None
    images: int
    length: int
    beam: int
    units: list[Unit]
    concepts: dict[str, tuple[float, float]]
    correlation: dict[str, tuple[float | None, int]]

    def count(self, state: str) -> int:
        """How many units are in a state."""
        return sum(u.state == state for u in self.units)

    def most_lost(self) -> list[str]:
        """The concepts, the one first that lost most."""
        return sorted(self.concepts, key=lambda name: self.concepts[name][1] - self.concepts[name][0])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"most_lost": self.most_lost()[:10]}


@dataclass(frozen=True)
class Seen:
    """What a network's units do on all images. fires: (units, cells), the part of each cell. top: (units, images), the
    greatest activation in each image. right: (images,), whether its answer is the label."""

    fires: Tensor
    top: Tensor
    thresholds: Tensor
    right: Tensor | None


def explain(
    run: Run,
    data: str | None = None,
    layer: str | None = None,
    units: int = 64,
    limit: int | None = None,
    length: int = 3,
    beam: int = 5,
    groups: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Changes, "Excited"]:
    """The forms of a layer's units in the run's float network and in its student, and the images that excite them.

    data: a labelled data set, `kind:PATH`; None: the concepts are the teacher's own units, on the run's synthetic
        samples. layer: the module's name, by default the last with a place in the image. units: so many channels at
        most, evenly spread. limit: so many images. length, beam: of `formulas.best_forms`. groups: a JSON file of
        groups of classes.

    Raises SourceError for a run without a float network or without samples, UserError for a layer that is none and for
    too few images, DataError as `concepts.probe_of`.
    """
    progress, card = progress or Progress(), run.card()
    floats = run.teacher()
    if floats is None:
        raise SourceError(f"{run / TEACHER}: missing; a run of an older zaq keeps no float network to compare with.")
    teacher, student = teacher_of(floats, card)[0], run.student()
    pair = layer_pair(teacher, student, layer)
    chosen = [i * pair.units // min(units, pair.units) for i in range(min(units, pair.units))]
    probe = probe_of(data, card, limit, groups) if data else probe_of_run(run, limit)
    if len(probe.samples) < LEAST:
        raise UserError(f"{data or run.path}: {len(probe.samples)} images are too few; {LEAST} are the least.")
    graphs = (with_taps(teacher, [pair.teacher]), with_taps(student, [pair.student]))
    seen = [_look(g, chosen, probe, progress, what) for g, what in zip(graphs, NETWORKS, strict=True)]
    concepts = probe.concepts() if data else seen[0].fires > 0
    names = probe.names if data else [f"unit {i}" for i in chosen]
    found = []
    for row in progress.track("forms", len(chosen)):
        fires = [network.fires[row] for network in seen]
        before = best_forms(fires[0], concepts, length, beam) if data else _itself(row, fires[0])
        found.append(
            _unit(chosen[row], row, before, best_forms(fires[1], concepts, length, beam), names, concepts, seen)
        )
    correlation = {what: _correlation(found, i) for i, what in enumerate(NETWORKS)}
    alone = {name: _alone(row, seen) for name, row in zip(names, concepts, strict=True)}
    changes = Changes(pair.name, data, len(probe.samples), length, beam, found, alone, correlation)
    return changes, Excited(probe, graphs, tuple(chosen), tuple(seen))


def _itself(row: int, fires: Tensor) -> Explained:
    """What a unit of the teacher is, where these are the concepts."""
    return Explained(Form(((row, ""),)), 1.0) if bool((fires > 0).any()) else Explained(None, 0.0)


@torch.no_grad()
def _look(network: GraphModule, chosen: list[int], probe: Probe, progress: Progress, what: str) -> Seen:
    """Twice over all images: for the thresholds, and for where units exceed them."""
    count = len(probe.samples)
    parts = [range(at, min(at + BATCH, count)) for at in range(0, count, BATCH)]
    thresholds, right = None, list[Tensor]()
    for number in progress.track(f"thresholds of the {what} network", len(parts)):
        (outputs, (activations,)), labels = network(probe.images(parts[number])), probe.labels
        units = activations[:, chosen]
        thresholds = thresholds or Thresholds(count * math.prod(units.shape[2:]))
        thresholds.see(units)
        if labels is not None and outputs[0].dim() == 2:
            right.append(outputs[0].argmax(1) == torch.tensor([labels[i] for i in parts[number]]))
    assert thresholds is not None
    limits = thresholds.values()
    fires, top = list[Tensor](), list[Tensor]()
    for number in progress.track(f"units of the {what} network", len(parts)):
        units = network(probe.images(parts[number]))[1][0][:, chosen]
        top.append(units.flatten(2).amax(2))
        fires.append(firing(units, limits, probe.side))
    return Seen(torch.cat(fires, 1), torch.cat(top).T, limits, torch.cat(right) if right else None)


def firing(units: Tensor, limits: Tensor, side: int | None) -> Tensor:
    """Activations (n, units, H, W) as the part of each cell in which a unit exceeds its limit, (units, cells).

    side: cells a side; 1: what part of the image's places; None: a cell a place. Else they are brought to the cells
    before they are compared, as in the paper.
    """
    if side not in (None, 1):
        units = F.interpolate(units, size=(side, side), mode="bilinear", align_corners=False)
    over = (units > limits[:, None, None]).float()
    return (over.mean((2, 3))[:, :, None] if side == 1 else over.flatten(2)).movedim(1, 0).flatten(1)


def _unit(
    number: int, row: int, before: Explained, after: Explained, names: list[str], concepts: Tensor, seen: list[Seen]
) -> Unit:
    still = iou(seen[1].fires[row], before.form.holds(concepts)) if before.form else 0.0
    if before.form is None:
        state = NONE
    elif before.form == after.form:
        state = KEPT
    else:
        state = LOST if still < FELL * before.iou else CHANGED
    told = [e.form.text(names) if e.form else None for e in (before, after)]
    right = [_right(network, row) for network in seen]
    return Unit(number, told[0], before.iou, told[1], after.iou, still, state, (right[0], right[1]))


def _right(seen: Seen, row: int) -> float | None:
    fires = seen.top[row] > seen.thresholds[row]
    return None if seen.right is None or not bool(fires.any()) else float(seen.right[fires].float().mean())


def _alone(holds: Tensor, seen: list[Seen]) -> tuple[float, float]:
    """The sum over units of a single concept's IoU with each, in both networks."""
    return tuple(sum(iou(unit, holds) for unit in network.fires) for network in seen)  # type: ignore[return-value]


def _correlation(units: list[Unit], which: int) -> tuple[float | None, int]:
    """Pearson's r of a unit's IoU with how often its network is right where it fires; None where that does not vary."""
    pairs = [((u.iou_before, u.iou_after)[which], u.right[which]) for u in units]
    known = np.array([(a, b) for a, b in pairs if b is not None], float).reshape(-1, 2)
    if len(known) < 3 or not known.std(0).all():
        return None, len(known)
    return float(np.corrcoef(known.T)[0, 1]), len(known)


@dataclass(frozen=True)
class Excited:
    """The images that excite units, to be shown."""

    probe: Probe
    networks: tuple[GraphModule, ...]
    chosen: tuple[int, ...]
    seen: tuple[Seen, ...]

    @torch.no_grad()
    def images(self, unit: int, count: int = 4) -> list[list[NDArray[np.uint8]]]:
        """Of each network the images (H, W, 3) that a unit is most active in, dark where it does not fire."""
        row, found = self.chosen.index(unit), []
        for network, seen in zip(self.networks, self.seen, strict=True):
            numbers = seen.top[row].argsort(descending=True)[:count].tolist()
            activations = network(self.probe.images(numbers))[1][0][:, [unit]]
            pixels = [self.probe.pixels(n) for n in numbers]
            size = pixels[0].shape[:2]
            over = F.interpolate(activations, size=size, mode="bilinear", align_corners=False) > seen.thresholds[row]
            found.append([_dimmed(p, mask.numpy()) for p, mask in zip(pixels, over[:, 0], strict=True)])
        return found


def _dimmed(pixels: NDArray[np.uint8], fires: NDArray[np.bool_]) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.where(fires[..., None], pixels, pixels // 3)
    return found
