"""A file beside the float network that it was made from, on the same images: what was lost, and how sure that is."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from torch.fx import GraphModule

from zaq.config.card import Card
from zaq.engine.progress import Progress
from zaq.evaluate import TASKS
from zaq.evaluate.classification import ranked, score_of
from zaq.evaluate.models import Result

__all__ = ["Measured", "measure"]

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What was measured of a file, and of the float network where there is one. Of classes: their answers, (N,) each,
    and the truth.
    """

    ours: Result
    teacher: Result | None = None
    answers: tuple[Labels, ...] = ()  # ours, then the float network's
    labels: Labels | None = None

    @property
    def agreement(self) -> float | None:
        """Percent of images that both give the same class."""
        return 100 * float((self.answers[0] == self.answers[1]).mean()) if len(self.answers) == 2 else None

    @property
    def interval(self) -> float:
        """Half the 95 % interval of the drop, in points: of two networks on the same images (normal approximation of
        the mean difference).
        """
        ours, theirs = (answer == self.labels for answer in self.answers)
        return 100 * 1.96 * float((theirs.astype(float) - ours).std()) / math.sqrt(len(ours))

    def fields(self, per_class: bool = False) -> dict[str, Any]:
        """Ours by name, the one that counts first; the float network's; what was lost of each, and the classes."""
        found: dict[str, Any] = dict(self.ours.fields())
        if self.teacher is not None:
            float_fields = self.teacher.fields()
            counts = ("interval", "correct", "total")
            found["float"] = float_fields
            found["drop"] = {name: float_fields[name] - found[name] for name in float_fields if name not in counts}
        if self.agreement is not None:
            found |= {"agreement": self.agreement, "drop_interval": self.interval}
        return found | ({"classes": self.classes()} if per_class else {})

    def lost(self) -> str:
        """What was lost, as a line; empty where there is no float network."""
        drops = [f"{drop:.2f} of {name}" for name, drop in self.fields().get("drop", {}).items()]
        if self.agreement is None:
            return f"lost: {', '.join(drops)}" if drops else ""
        first, *others = drops
        told = ", ".join([f"{first} (+-{self.interval:.2f})", *others])
        return f"lost: {told} points; the same answer on {self.agreement:.2f} % of images"

    def classes(self) -> list[dict[str, float]]:
        """Each class that there are images of, with percent right; the one that lost most, or is worst, first."""
        assert self.labels is not None
        rows = []
        for label in np.unique(self.labels):
            mine = self.labels == label
            right = [100 * float((answer[mine] == label).mean()) for answer in self.answers]
            row = {"class": int(label), "images": int(mine.sum()), "top1": right[0]}
            rows.append(row | ({"float": right[1], "drop": right[1] - right[0]} if len(right) > 1 else {}))
        return sorted(rows, key=lambda row: (-row.get("drop", 0.0), row["top1"]))


def measure(
    task: str,
    file: ort.InferenceSession | GraphModule,
    teacher: GraphModule | None,
    data: str,
    card: Card,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measure a file on `data` by a task, one of TASKS, and the float network on the same images.

    Raises what `zaq.evaluate.models.Task` does.
    """
    if task == "image":  # the float network is what it is compared with
        return Measured(TASKS[task](file, data, card, limit, progress, teacher))
    if task != "classification":
        ours = TASKS[task](file, data, card, limit, progress)
        theirs = None if teacher is None else TASKS[task](teacher, data, card, limit, progress)
        return Measured(ours, theirs)
    ranks, labels = ranked(file, data, card, limit, progress)
    if teacher is None:
        return Measured(score_of(ranks, labels), None, (ranks[:, 0],), labels)
    others, _ = ranked(teacher, data, card, limit, progress)
    return Measured(score_of(ranks, labels), score_of(others, labels), (ranks[:, 0], others[:, 0]), labels)
