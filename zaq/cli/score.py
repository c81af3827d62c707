"""`zaq score`."""

from typing import Any

import click

from zaq.cli.options import device_option, load_source, progress, source_options
from zaq.config.bounds import json_text

__all__ = ["score"]


@click.command()
@click.argument("real")
@click.argument("drawn")
@click.option("--teacher", default="zoo:resnet20_cifar10", show_default=True, help="The float model, as zaq quantize.")
@click.option("--neighbours", type=click.IntRange(1, 1000), default=5, show_default=True, help="k of the balls.")
@click.option("--limit", type=click.IntRange(min=1), help="So many images of each at most, evenly spread.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@source_options
def score(
    real: str, drawn: str, teacher: str, neighbours: int, limit: int | None, device: str, as_json: bool, **flags: Any
) -> None:
    """How like the images REAL those of DRAWN are to the teacher: precision, recall, density and coverage, in what its
    last layer reads.

    Each is RUN (the images that a run learned from), held-out:RUN, generator:RUN (drawn anew), or a data set as
    cifar10:DIR or images:DIR. Coverage is the part of REAL that has one of DRAWN beside it.
    """
    import dataclasses

    from zaq.compute.devices import device_named
    from zaq.score import score as measured

    found = measured(load_source(teacher, flags), real, drawn, neighbours, limit, progress(), device_named(device))
    click.echo(
        json_text(dataclasses.asdict(found)) if as_json else f"{found.drawn} images against {found.real}: {found}"
    )
