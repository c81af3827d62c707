"""`zaq profile`."""

from pathlib import Path
from typing import Any

import click

from zaq.cli.options import THERE, Number, columns, progress
from zaq.config.bounds import json_text
from zaq.config.files import scratch

__all__ = ["profile"]


@click.command()
@click.argument("run", type=THERE)
@click.option(
    "--latency", is_flag=True, help="Time it in onnxruntime too, beside float and onnxruntime's own static int8."
)
@click.option(
    "--seconds",
    type=Number(min=0),
    default=5.0,
    show_default=True,
    help="How long each batch and number of threads is timed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def profile(run: Path, latency: bool, seconds: float, as_json: bool) -> None:
    """What RUN's ONNX files cost, and what the float model would: bytes, operations, memory, an estimate of energy."""
    from zaq.cost import deployment
    from zaq.cost import latency as timing
    from zaq.export.onnx import to_onnx
    from zaq.run import Run

    opened = Run.open(run)
    opened.require_parts("model.onnx")
    plain = to_onnx(opened.program(), {}, form="float")
    costs = deployment.costs(plain, opened / "model.onnx", opened.card().input)
    found: dict[str, Any] = deployment.report(costs)
    tables = [deployment.table(costs)]
    if latency:
        with scratch() as folder:
            files = timing.contenders(plain, opened / "model.onnx", opened.samples(), folder)
            rows = timing.measure(files, seconds=seconds, progress=progress(), image=opened.card().input)
        found["latency"] = [row.to_dict() for row in rows]
        tables.append(timing.table(rows))
    if as_json:
        click.echo(json_text(found, indent=1))
        return
    for table in tables:
        click.echo(columns(table) + "\n")
    click.echo(f"Energy by {deployment.SOURCE}.")
