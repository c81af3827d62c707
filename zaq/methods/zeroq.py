"""ZeroQ (Cai, Yao, Dong, Gholami, Mahoney, Keutzer; CVPR 2020).

One batch of images is optimised from noise until it has the statistics that the teacher's batch norms remember,

    min over x of  sum_i ||mu_i(x) - mu_i||^2 + ||sigma_i(x) - sigma_i||^2,

and activation ranges are read from it; weights are rounded to nearest. With `--bits mixed` each weight gets bits of its
own, from how much it disturbs the teacher on that batch (`quant.mixed`), which the paper has and its code never had.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zaq.config.constants import Amount, Count, OneOrMore, Steps
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import SourceError
from zaq.methods.base import Method
from zaq.quant.observers import Observer
from zaq.stages.calibrate import Calibrate
from zaq.stages.mix import ChooseBits
from zaq.stages.pixels import Pixels
from zaq.synth.losses import sample_statistics_loss, standard

__all__ = ["Distil", "ZeroQ"]

STEPS = {"fast": 60, "default": 250, "best": 500}  # effort: iterations; best is the paper's


@dataclass(frozen=True, kw_only=True)
class Distil(Stage):
    """One batch of images with the teacher's statistics. Raises SourceError where it has none."""

    name: str = "distil"
    steps: Steps = -1  # -1: set by the effort
    batch: OneOrMore = 32  # images (readme: 64); fewer where they are large, but for effort best
    lr: Amount = 0.5  # Adam, on pixels
    patience: Count = 100  # steps without progress after which the rate is a tenth, down to 1e-4
    noise: Amount = 255 / 5418.75  # width of the uniform noise at the start: its variance, where a deviation was meant
    stored_in_bounds: bool = False  # go on with them as a file stores them; else with what was found

    look: ClassVar[int] = 5

    def makes(self) -> tuple[str, ...]:
        return ("images", "samples")

    def applies(self, state: State) -> bool:
        return True

    def length(self, state: State) -> int:
        return STEPS[state.task.effort] if self.steps < 0 else self.steps

    def start(self, state: State, journal: Journal) -> Loop:
        task, stats = state.task, state.task.batch_norms()
        if not stats:
            raise SourceError(
                "zeroq lives on the statistics of batch norms, and this model has none that folds into a layer; "
                "--method zaq needs none."
            )
        teacher, pixels = task.teacher_at(list(stats)), standard(task.card.input[0], task.device)

        def losses(x: Tensor) -> dict[str, Tensor]:  # of mean 0 and deviation 1, whatever pixels the teacher reads
            features = teacher(task.card.images(x))[1]
            return {
                "layers": sample_statistics_loss(features, list(stats.values())),
                "input": sample_statistics_loss([x], [pixels]),
            }

        count = self.batch if task.effort == "best" else min(self.batch, task.batch)
        start = self.noise * (torch.rand(count, *task.card.input).to(task.device) - 0.5)

        def finish() -> None:
            found = task.card.images(torch.cat(loop.images))
            state.samples, state.held_out = task.card.in_bounds(found), False
            state.images = state.samples if self.stored_in_bounds else found

        length = self.length(state)
        loop = Pixels(start, lambda _: losses, length, self.lr, task.work, patience=self.patience, finish=finish)
        return loop


@dataclass(frozen=True)
class ZeroQ(Method):
    """The paper's constants, as its code has them. `None`: set by the effort."""

    batch: OneOrMore = 32  # images (readme: 64); fewer where they are large, but for effort best
    steps: Count | None = None
    lr: Amount = 0.5  # Adam, on pixels
    patience: Count = 100  # steps without progress after which the rate is a tenth, down to 1e-4
    noise: Amount = 255 / 5418.75  # width of the uniform noise at the start: its variance, where a deviation was meant
    search: bool = False  # True: weight grids of the least error instead of the whole range
    observer: Observer = "minmax"  # one of OBSERVERS

    name: ClassVar[str] = "zeroq"
    mixes: ClassVar[bool] = True
    parts: ClassVar[tuple[type[Stage], ...]] = (Distil, ChooseBits, Calibrate)

    def stages(self, task: Task) -> list[Stage]:
        """Distil, choose bits if asked to, calibrate."""
        steps = -1 if self.steps is None else self.steps
        distil = Distil(steps=steps, batch=self.batch, lr=self.lr, patience=self.patience, noise=self.noise)
        return [distil, ChooseBits(search=self.search, all_images=True), Calibrate(observer=self.observer)]
