"""`zaq eval`."""

import json
from pathlib import Path

import click

from zaq.cli.options import PATH

__all__ = ["evaluate"]


@click.command(name="eval")
@click.argument("run", type=PATH)
@click.option("--data", required=True, help="cifar10:DIR, cifar100:DIR, csv:DIR (labels.csv with file,label).")
@click.option("--limit", type=int, help="Only the first images.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def evaluate(run: Path, data: str, limit: int | None, as_json: bool) -> None:
    """Top-1 of RUN's ONNX file, in onnxruntime, on labelled images. Only this command reads any."""
    from zaq.evaluate import top1
    from zaq.run import Run

    opened = Run.open(run)
    score = top1(opened / "model.onnx", data, opened.card(), limit)
    fields = {"top1": score.percent, "interval": score.interval, "correct": score.correct, "total": score.total}
    click.echo(json.dumps(fields) if as_json else str(score))
