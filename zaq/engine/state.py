"""What stages hand on to each other: the student and the images it learns from and is judged by."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.compute.processes import world
from zaq.config.bits import QConfig
from zaq.engine.snapshot import Unsaved
from zaq.engine.store import Store
from zaq.engine.task import Task
from zaq.engine.work import Network
from zaq.errors import SourceError
from zaq.ir.move import moved, onto
from zaq.ir.taps import with_taps
from zaq.quant.student import Student

__all__ = ["NOT_FINITE", "HeldOut", "State", "broken_images"]

PLAIN = ("images", "samples", "held_out", "frontier")  # fields that are saved as they are


@dataclass
class State:
    """All that one stage leaves for the next; `task` says what is asked, and its teacher may be rewritten."""

    task: Task
    images: Tensor | None = None  # (N, C, H, W), to learn and to calibrate on
    samples: Tensor | None = None  # (N, C, H, W), held out: stored with the run, for its report and for `zaq verify`
    held_out: bool = False  # whether `samples` are none of those that were learned on
    generator: Any = None  # of `images`
    other: Any = None  # of `samples`
    optimizer: Any = None  # of `generator`, where later stages go on with it
    judge: Callable[[], float] | None = None  # the held-out loss that stages are kept or taken back by
    frontier: list[tuple[int, float]] = field(default_factory=list)  # mixed precision: (bytes, least sensitivity)
    folder: Path | None = None  # for files of what does not fit into `task.memory`; None: where temporary files go
    _student: Student | None = None
    _sound: bool = False  # whether the teacher's outputs on the first samples were looked at

    @cached_property
    def store(self) -> Store:
        """Where images and features are kept."""
        return Store(self.task.memory // world(), self.folder)

    @property
    def student(self) -> Student:
        """Placed when it is asked for first, uncalibrated."""
        if self._student is None:
            task = self.task
            self._student = Student(task.teacher, task.qconfig, task.card, task.search, task.unlike)
        return self._student

    def rewrite(self, teacher: GraphModule | None = None, qconfig: QConfig | None = None) -> None:
        """Go on with a teacher that computes the same, or with other bits: the student is placed anew, uncalibrated."""
        self.task = replace(self.task, teacher=teacher or self.task.teacher, qconfig=qconfig or self.task.qconfig)
        self._student, self.judge = None, None

    def to(self, device: torch.device) -> None:
        """Move all of it, but for the judge and the optimizer, which are of what they were made with."""
        onto(self.task.teacher, device)
        if self._student is not None:
            onto(self._student.module, device)
        for name in ("images", "samples", "generator", "other"):
            setattr(self, name, moved(getattr(self, name), device))
        self.judge = self.optimizer = None

    def save(self) -> dict[str, Any]:
        """What a snapshot keeps of it: all but the teacher, and an optimizer other than Adam."""
        if self.optimizer is not None and type(self.optimizer) is not torch.optim.Adam:
            raise Unsaved(f"no snapshot can hold a {type(self.optimizer).__name__} between two stages")
        if self.judge is not None and not isinstance(self.judge, HeldOut):
            raise Unsaved(f"no snapshot can hold a judge that is a {type(self.judge).__name__}")
        return {
            "qconfig": self.task.qconfig,
            "student": self._student and self._student.save(),
            "judge": self.judge and (self.judge.samples, self.judge.discrepancy),
            "generator": copy.deepcopy(self.generator),
            "other": copy.deepcopy(self.other),
            "optimizer": self.optimizer and copy.deepcopy(self.optimizer.state_dict()),
            **{name: getattr(self, name) for name in PLAIN},
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` returned, with the teacher that there is."""
        self.rewrite(qconfig=saved["qconfig"])
        for name in (*PLAIN, "generator", "other"):
            setattr(self, name, saved[name])
        self.keep_images()
        if saved["student"]:
            self.student.load(saved["student"])
        if saved["judge"]:
            self.judge = HeldOut(self, *saved["judge"])
        if saved["optimizer"]:
            self.optimizer = torch.optim.Adam(self.generator.parameters())
            self.optimizer.load_state_dict(saved["optimizer"])

    @torch.no_grad()
    def require_finite(self) -> None:
        """Raise SourceError where the teacher's outputs on samples are not finite, as soon as there are samples."""
        if self.samples is not None and not self._sound:
            outputs = (self.task.teacher_at()(x)[0] for x in self.samples.split(self.task.batch))
            if broken := broken_images(outputs):
                raise SourceError(NOT_FINITE.format(broken, len(self.samples)))
            self._sound = True

    def keep_images(self) -> None:
        """Have the images in the store, wherever they came from."""
        if self.images is not None:
            self.images = self.store.gather(self.images.split(self.task.batch), len(self.images))

    def student_at(self, names: Sequence[str] = ()) -> Network:
        """The student as a network that returns ([outputs], [features at these nodes])."""
        return self.task.work.network(with_taps(self.student.module, list(names)))


NOT_FINITE = (
    "the float model's outputs are NaN or infinite for {} of {} held-out synthetic images; what is to be quantized "
    "must be finite on them. Its weights may be damaged, or its input may be normalised otherwise than was said."
)


def broken_images(outputs: Iterable[list[Tensor]]) -> int:
    """For how many images a network's outputs, batch by batch, are not all finite. What is infinite for every image is
    masked, and well."""

    def broken(output: Tensor) -> Tensor:
        masked = output.isinf() & (output == output[:1]).all(0)
        return (~output.isfinite() & ~masked).reshape(len(output), -1).any(1)

    return sum(int(torch.stack([broken(o) for o in batch]).any(0).sum()) for batch in outputs)


class HeldOut:
    """The held-out loss: by what `discrepancy` student and teacher differ on samples (N, C, H, W),
    a mean over batches."""

    def __init__(
        self, state: State, samples: Tensor, discrepancy: Callable[[list[Tensor], list[Tensor]], Tensor]
    ) -> None:
        task = state.task
        self.samples, self.discrepancy = samples, discrepancy
        self.student, self.parts = state.student_at(), samples.split(task.batch)
        with torch.no_grad():
            self.wanted = [task.teacher_at()(x)[0] for x in self.parts]
        if broken := broken_images(self.wanted):
            raise SourceError(NOT_FINITE.format(broken, len(samples)))

    @torch.no_grad()
    def __call__(self) -> float:
        """The loss now."""
        gaps = [self.discrepancy(p, self.student(x)[0]) for p, x in zip(self.wanted, self.parts, strict=True)]
        return float(torch.stack(gaps).mean())
