"""`zaq eval`."""

import json
from pathlib import Path
from typing import Any

import click

from zaq.cli.options import PATH, card_options, card_overrides, progress
from zaq.errors import UserError

__all__ = ["evaluate"]


@click.command(name="eval")
@click.argument("run", type=PATH)
@click.option("--data", required=True, help="cifar10:DIR, cifar100:DIR, folder:DIR (a folder a class), csv:DIR (labels.csv), npz:FILE.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first images.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@card_options
def evaluate(run: Path, data: str, limit: int | None, as_json: bool, **card: Any) -> None:
    """Top-1 of RUN's ONNX file, in onnxruntime, on labelled images. RUN may be the .onnx file alone.

    How images are prepared is stored with the run; the flags say it otherwise.
    """
    from zaq.evaluate import stored_card, top1
    from zaq.run import Run

    path = run if run.is_file() else Run.open(run) / "model.onnx"
    known = stored_card(path) if run.is_file() else Run.open(run).card()
    changed = known.override(**card_overrides(card))
    if changed.input != known.input:
        raise UserError(f"{path}: takes inputs of {known.input}; --input-shape says {changed.input}.")
    score = top1(path, data, changed, limit, progress())
    fields = {"top1": score.percent, "interval": score.interval, "correct": score.correct, "total": score.total}
    click.echo(json.dumps(fields) if as_json else str(score))
