"""Noise where nothing better is known, ranges from images, and the samples that stages are judged on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zaq.config.constants import Count, Share
from zaq.config.memory import at_once
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import HeldOut, State
from zaq.quant.observers import Observer
from zaq.stages.training import frozen
from zaq.synth.drawings import drawings, reads_drawings
from zaq.synth.losses import output_discrepancy, relative_discrepancy

__all__ = ["Calibrate", "HoldOut", "Noise", "WholeRanges"]

TOGETHER = 5 * 2**17  # values of samples that are moved at once: half a batch, where images are large


@dataclass(frozen=True, kw_only=True)
class Noise(Stage):
    """Normal images with the mean and deviation of photographs (`Task.noise`): `steps` batches to calibrate on, and
    to be stored."""

    name: str = "noise"
    stored: bool = False  # draw the samples to be stored after those; else they are the same

    recorded: ClassVar[bool] = False
    after_ctrl_c: ClassVar[str] = "run"

    def makes(self) -> tuple[str, ...]:
        return ("images", "samples")

    def length(self, state: State) -> int:
        return 1

    def once(self, state: State, journal: Journal) -> None:
        count = self.steps * state.task.batch
        state.images = state.store.gather((state.task.noise() for _ in range(self.steps)), count)
        samples = state.task.noise() if self.stored else state.images.to(state.task.device)
        state.samples, state.held_out = samples, self.stored


@dataclass(frozen=True, kw_only=True)
class Calibrate(Stage):
    """Freeze the ranges of activations at what images cause, a batch a step."""

    name: str = "calibrate"
    observer: Observer = "mse"  # one of OBSERVERS
    drawn: bool = False  # at what drawings cause, too, where the teacher may have been made for such

    cost: ClassVar[float] = 1.5
    after_ctrl_c: ClassVar[str] = "run"

    def length(self, state: State) -> int:
        assert state.images is not None
        return -(-(len(state.images) + self._drawings(state)) // state.task.batch)

    def start(self, state: State, journal: Journal) -> Loop:
        assert state.images is not None
        images, task, student = state.images, state.task, state.student
        parts = images.split(task.batch)
        if count := self._drawings(state):
            parts = (*parts, *drawings(count, task.card).split(task.batch))
        student.watch(self.observer)

        @torch.no_grad()
        def one(i: int) -> None:
            student(parts[i].to(task.device))

        return Loop(one, finish=student.freeze)

    def _drawings(self, state: State) -> int:
        return state.task.few if self.drawn and reads_drawings(state.task) else 0


@dataclass(frozen=True, kw_only=True)
class WholeRanges(Calibrate):
    """Freeze the ranges anew at all that images cause, and keep that only if it serves: what is rare is what a detector
    looks for, and 8 bits have steps enough for it; where nothing is rare they are better spent on what is usual.
    """

    name: str = "whole ranges"
    observer: Observer = "minmax"

    after_ctrl_c: ClassVar[str] = ""

    def judge(self, state: State) -> Callable[[], float] | None:
        return state.judge


@dataclass(frozen=True, kw_only=True)
class HoldOut(Stage):
    """Judge what follows on the samples held out, half of which are first moved up the gradient of what teacher and
    student differ by, so that what is judged by is hard.
    """

    name: str = "hold out"
    steps: Count = 3  # of the attack
    attack: Share = 0.02  # how far samples are moved, in parts of a pixel's range; 0: not at all
    relative: bool = True  # outputs in units of their spread, else D_o as ZAQ has it

    recorded: ClassVar[bool] = False
    after_ctrl_c: ClassVar[str] = "run"

    def applies(self, state: State) -> bool:
        return True

    def length(self, state: State) -> int:
        return 1

    def once(self, state: State, journal: Journal) -> None:
        assert state.samples is not None
        if self.attack and self.steps:
            half = len(state.samples) // 2
            parts = [self._moved(state, part) for part in state.samples[half:].split(state.task.batch)]
            state.samples = torch.cat([state.samples[:half], *parts])
        state.judge = HeldOut(state, state.samples, relative_discrepancy if self.relative else output_discrepancy)

    def _moved(self, state: State, part: Tensor) -> Tensor:
        low, high = state.task.card.bounds(state.task.device)
        teacher, student = state.task.teacher_at(), state.student_at()
        rows = at_once(TOGETHER, part.shape[1:])
        with frozen(state.student.module):
            for _ in range(self.steps):
                gradient = state.task.work.ascent([teacher, student], output_discrepancy, part, rows)
                part = state.task.card.in_bounds(part + self.attack / self.steps * (high - low) * gradient.sign())
        return part
