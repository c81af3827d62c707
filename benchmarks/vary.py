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
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import click
import torch

from zaq import QConfig
from zaq.api import quantize_graph
from zaq.cli.options import method_of
from zaq.engine.progress import Progress
from zaq.errors import UserError, unknown
from zaq.evaluate.classification import Score, predictions
from zaq.methods.flagship import Flagship
from zaq.methods.job import Job
from zaq.methods.loop import HeldOut
from zaq.methods.reconstruction import Reconstruction
from zaq.sources import load
from zaq.synth.losses import relative_discrepancy

STAGES: dict[str, tuple[type, str]] = {"reconstruct": (Reconstruction, "__call__"), "polish": (Flagship, "_polish")}


class Done(Exception):
    """Every variant has been tried."""


def parsed(kind: Any, variant: str) -> dict[str, float]:
    """`key=value key=value` of a stage. Raises UserError for a key that it does not have."""
    known = [*(f.name for f in fields(kind)), "steps"]
    values = {}
    for part in variant.split():
        key, _, text = part.partition("=")
        try:
            values[key] = float(text)
        except ValueError:
            raise UserError(f"{part}: write key=number.") from None
        if key not in known:
            raise UserError(f"{part}: " + unknown("constant", key, known))
    return values


@click.command(help=__doc__)
@click.argument("source")
@click.argument("stage", type=click.Choice(list(STAGES)))
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
    kind, name = STAGES[stage]
    chosen = [parsed(kind, v) for v in variants]
    model, original = load(source), getattr(kind, name)

    def varied(self: Any, job: Job, *given: Any) -> None:
        *images, steps, last = given
        assert job.samples is not None
        held_out = HeldOut(job, job.samples, relative_discrepancy)
        saved, rng = copy.deepcopy(job.student.state_dict()), torch.get_rng_state()
        click.echo(f"| {stage} | held-out loss, {held_out():.4f} before | top-1 |\n|---|---|---|")
        for text, values in zip(variants, chosen, strict=True):
            job.student.load_state_dict(saved)
            torch.set_rng_state(rng)
            own = {k: v for k, v in values.items() if k != "steps"}
            original(replace(self, **own), job, *images, int(values.get("steps", steps)), last)
            top1 = f"{Score.of(*predictions(job.student, data, model.card)).percent:.2f}" if data else ""
            click.echo(f"| {text} | {held_out():.4f} | {top1} |")
        raise Done

    qconfig, method = QConfig.parse(bits, placement=placement), method_of("flagship", settings)
    setattr(kind, name, varied)
    try:
        with suppress(Done):  # raised where the stage ends: what follows it is not run
            quantize_graph(model.graph, qconfig, method, card=model.card, effort=effort, progress=Progress())
    finally:
        setattr(kind, name, original)


if __name__ == "__main__":
    main()
