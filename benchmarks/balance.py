"""How well M_global and the held-out loss rank the states of one game, against their top-1 on real images.

    python benchmarks/balance.py zoo:resnet20_cifar10 --data cifar10:DIR --bits w4a4 --rounds 85

Spearman's rank correlation, over a state every few rounds. For diagnosis alone: no state is chosen by top-1.
"""

from dataclasses import dataclass, field
from typing import Any

import click
import torch
from torch import Tensor

from zaq.api import teacher_of
from zaq.config.bits import QConfig
from zaq.engine.journal import Journal, Log
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.evaluate.classification import measure_classification
from zaq.methods.zaq import ZAQ
from zaq.sources import load


@dataclass
class Diagnosed(Log):
    """A log that looks at the student behind every `every`-th round of a game."""

    state: State | None = None
    data: str = ""
    limit: int = 1000
    every: int = 5
    points: list[tuple[float, float, float]] = field(default_factory=list)  # M_global, held-out loss, top-1

    def __call__(self, stage: str, step: int, **values: float) -> None:
        super().__call__(stage, step, **values)
        if "m_global" in values and step % self.every == 0:
            assert self.state is not None and self.state.judge is not None
            found = measure_classification(self.state.student.module, self.data, self.state.task.card, self.limit)
            self.points.append((values["m_global"], self.state.judge(), found.percent))
            click.echo(
                f"round {step + 1}: M_global {values['m_global']:.4g}, held-out {self.points[-1][1]:.4g}, {found}"
            )


@click.command()
@click.argument("source", default="zoo:resnet20_cifar10")
@click.option("--data", required=True)
@click.option("--bits", default="w4a4", show_default=True)
@click.option("--rounds", default=85, show_default=True)
@click.option("--warm-up", default=150, show_default=True)
@click.option("--every", default=5, show_default=True)
@click.option("--limit", default=1000, show_default=True, help="Images that top-1 is measured on.")
@click.option("--seed", default=0, show_default=True)
def balance(source: str, bits: str, rounds: int, warm_up: int, seed: int, **looking: Any) -> None:
    """Spearman's rho of M_global and of the held-out loss, both with a minus, with top-1."""
    model = load(source)
    teacher, card, _ = teacher_of(model.graph, model.card)
    state = State(Task(teacher, QConfig.parse(bits), card, seed=seed))
    log = Diagnosed(state=state, **looking)
    method = ZAQ(balance="began", rounds=rounds, warm_up=warm_up)
    run_stages(method.plan(state.task), state, Journal(log=log))
    m, held_out, top1 = torch.tensor(log.points).double().unbind(1)
    click.echo(f"rho of -M_global and top-1: {spearman(-m, top1):.2f}; of -held-out and top-1: ", nl=False)
    click.echo(f"{spearman(-held_out, top1):.2f}; {len(top1)} states")


def spearman(a: Tensor, b: Tensor) -> float:
    """The correlation of ranks, those of equal values being their mean. (n,), (n,) -> from -1 to 1."""

    def ranks(x: Tensor) -> Tensor:
        return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) - 1) / 2

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]).double())[0, 1])


if __name__ == "__main__":
    balance()
