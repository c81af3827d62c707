"""`zaq verify`."""

import json
from pathlib import Path

import click

from zaq.cli.options import PATH

__all__ = ["verify"]


@click.command()
@click.argument("run", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def verify(run: Path, as_json: bool) -> None:
    """RUN's ONNX file in onnxruntime against its quantized checkpoint, on synthetic samples."""
    from zaq.export.verify import compare
    from zaq.run import Run

    opened = Run.open(run)
    parity = compare(opened / "model.onnx", opened.student(), opened.samples())
    if as_json:
        click.echo(json.dumps(parity.to_dict(), indent=1))
        return
    click.echo(parity.sentence())
    click.echo("kernels: " + ", ".join(f"{n} {k}" for k, n in parity.kernels.items()))
    if parity.float_kernels:
        click.echo("in float: " + ", ".join(parity.float_kernels))
