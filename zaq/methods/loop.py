"""The adversarial loop that data-free methods share: its state as one object, rollback after a NaN, early stopping."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zaq.ir.taps import with_taps
from zaq.methods.job import Job, Stage
from zaq.quant.placement import make_room

__all__ = ["Game", "HeldOut", "play"]

CHECKS = 8  # times the held-out loss is looked at during a game; 1: at its end
LIVES = 2  # times a loss may become NaN before the game stops
SMALLER = 0.1  # the factor on every learning rate after a NaN


@dataclass
class Game:
    """Everything that changes while student and generator play; what is not in here does not matter across rounds."""

    student: nn.Module
    generator: nn.Module | None  # None: there is no one to play against (fine-tuning)
    optimizer_q: Optimizer
    optimizer_g: Optimizer | None
    layer_gaps: Tensor | None = None  # EMA of each layer's relation gap, (layers,)
    round: int = 0
    peak_lrs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.peak_lrs = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts() if isinstance(part, Optimizer) for group in part.param_groups]

    def _parts(self) -> list[Any]:
        parts = (self.student, self.generator, self.optimizer_q, self.optimizer_g)
        return [p for p in parts if p is not None]

    def set_lr(self, factor: float) -> None:
        for group, peak in zip(self._groups(), self.peak_lrs, strict=True):
            group["lr"] = peak * factor

    def save(self) -> dict[str, Any]:
        """A copy of the state that later rounds do not touch."""
        saved = {"parts": [copy.deepcopy(p.state_dict()) for p in self._parts()], "rng": torch.get_rng_state()}
        return saved | {"layer_gaps": self.layer_gaps, "round": self.round}

    def restore(self, saved: dict[str, Any]) -> None:
        for part, state in zip(self._parts(), saved["parts"], strict=True):
            part.load_state_dict(copy.deepcopy(state))
        torch.set_rng_state(saved["rng"])
        self.layer_gaps, self.round = saved["layer_gaps"], saved["round"]


class HeldOut:
    """Samples that no stage trains on: by what `discrepancy` student and teacher differ on them, a mean over batches."""

    def __init__(self, job: Job, images: Tensor, discrepancy: Callable[[list[Tensor], list[Tensor]], Tensor]) -> None:
        self.student, self.parts, self.discrepancy = with_taps(job.student, []), images.split(job.batch), discrepancy
        with torch.no_grad():
            self.wanted = [with_taps(job.teacher, [])(x)[0] for x in self.parts]

    @torch.no_grad()
    def __call__(self) -> float:
        gaps = [self.discrepancy(p, self.student(x)[0]) for p, x in zip(self.wanted, self.parts, strict=True)]
        return float(torch.stack(gaps).mean())


def play(
    job: Job,
    game: Game,
    rounds: int,
    one_round: Callable[[Game], dict[str, float]],
    schedule: Callable[[float], float],
    held_out: Callable[[], float],
    name: str,
    checks: int = CHECKS,
) -> Stage:
    """Play `rounds` rounds and keep the state with the least held-out synthetic loss, the one before the game included.

    `schedule` maps progress in [0, 1) to a factor on the learning rates; `checks`: how often the held-out loss is
    looked at. A loss that is not finite puts the last good round back and goes on with a tenth of the step, twice; then
    the game ends with what it has. So does Ctrl-C.
    """
    stage = Stage(name, 0, loss_before=held_out())
    best = good = game.save()
    least, best_round = stage.loss_before or 0.0, 0
    smaller, lives = 1.0, LIVES

    def check() -> None:
        nonlocal best, least, best_round
        loss = held_out()
        job.log(name, stage.steps, held_out=loss)
        if loss < least:
            best, least, best_round = good, loss, stage.steps

    try:
        for i in job.progress.track(name, rounds):
            game.round = i
            game.set_lr(smaller * schedule(i / rounds))
            losses = one_round(game)
            make_room(job.student)  # so that what is judged and kept is what will be shipped
            if all(math.isfinite(v) for v in losses.values()):
                good = game.save()
                stage.steps = i + 1
                job.log(name, i, **losses)
                if (i + 1) % max(rounds // checks, 1) == 0 and i + 1 < rounds:
                    check()
                continue
            game.restore(good)
            smaller, lives = smaller * SMALLER, lives - 1
            job.log(name, i, rolled_back=1.0)
            if lives < 0:
                stage.note = f"stopped at round {i + 1} of {rounds}: the loss became NaN {LIVES + 1} times"
                break
            torch.manual_seed(torch.initial_seed() + i + 1)  # other noise than that which led there
    except KeyboardInterrupt:
        game.restore(good)
        job.interrupted = True
        stage.note = f"interrupted after round {stage.steps} of {rounds}"
    check()
    game.restore(best)
    stage.loss_after, stage.kept = least, best_round > 0
    if best_round < stage.steps:
        kept = f"the state after round {best_round} was kept" if best_round else "not kept"
        stage.note = "; ".join(filter(None, [stage.note, f"{kept}: the held-out loss went up from there"]))
    job.stages.append(stage)
    return stage
