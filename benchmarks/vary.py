"""What one stage of the recipe makes of other constants: all before it runs once, then it starts from there with each
of them.

    python benchmarks/vary.py SOURCE polish "travel=2" "travel=6 steps=600" --bits w3a3 --effort best --data cifar10:DIR
    python benchmarks/vary.py SOURCE reconstruct "lr_scale=0.002" "lr_scale=0.1"

Prints the held-out synthetic loss, by which constants are chosen, and the accuracy of the student in torch beside it,
which chooses nothing. `steps` is the stage's length, all else the fields of `Reconstruction` and `Flagship`. One seed
(0) leaves some 0.01 of held-out loss and 0.2 points open; a reconstruction alone up to 0.06 and 1.6, by no more than
the order of a product.
"""

import copy
from dataclasses import fields, replace
from typing import Any

import click

from zaq import QConfig
from zaq.cli.options import method_of
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stage, run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import UserError, unknown
from zaq.evaluate.classification import Score, predictions
from zaq.passes.fold import fold
from zaq.sources import load


def parsed(stage: Any, variant: str) -> dict[str, Any]:
    """`key=value key=value` of a stage. Raises UserError for a key that it does not have."""
    known = [f.name for f in fields(stage)]
    values: dict[str, Any] = {}
    for part in variant.split():
        key, _, text = part.partition("=")
        try:
            values[key] = float(text)
        except ValueError:
            raise UserError(f"{part}: write key=number.") from None
        if key not in known:
            raise UserError(f"{part}: " + unknown("constant", key, known))
        if not isinstance(getattr(stage, key), float):
            values[key] = type(getattr(stage, key))(values[key])
    return values


@click.command(help=__doc__)
@click.argument("source")
@click.argument("stage", metavar="STAGE")
@click.argument("variants", nargs=-1, required=True)
@click.option("--bits", default="w3a3", show_default=True)
@click.option("--placement", default="integer", show_default=True)
@click.option("--effort", default="default", show_default=True)
@click.option("-s", "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of the recipe, before the stage.")
@click.option("--data", help="Real images to measure on; see `zaq eval --help`.")
def main(
    source: str,
    stage: str,
    variants: tuple[str, ...],
    bits: str,
    placement: str,
    effort: str,
    settings: tuple[str, ...],
    data: str | None,
) -> None:
    model, method = load(source), method_of("flagship", settings)
    task = Task(fold(model.graph)[0], QConfig.parse(bits, placement=placement), model.card, effort)
    stages = method.plan(task)
    names = [s.name for s in stages]
    if stage not in names:
        raise UserError(unknown("stage", stage, names))
    at = names.index(stage)
    tried = [replace(stages[at], **parsed(stages[at], variant)) for variant in variants]
    state, journal = State(task), Journal()
    run_stages(stages[:at], state, journal)
    judge = state.judge
    if judge is None:
        raise UserError(f"{stage}: nothing is held out yet where it begins; name a stage behind 'hold out'.")
    start = state.student.snapshot()
    click.echo(f"| {stage} | held-out loss, {judge():.4f} before | top-1 |\n|---|---|---|")
    for text, varied in zip(variants, tried, strict=True):
        state.student.restore(start)
        generator = copy.deepcopy(state.generator)
        run_stage(_Kept(varied), state, journal)  # type: ignore[arg-type]
        top1 = f"{Score.of(*predictions(state.student.module, data, model.card)).percent:.2f}" if data else ""
        click.echo(f"| {text} | {judge():.4f} | {top1} |")
        state.generator = generator


class _Kept:
    """A stage that is never taken back: what it makes of the student is what is measured."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def judge(self, state: State) -> None:
        """Nobody."""

    checks = 1


if __name__ == "__main__":
    main()
