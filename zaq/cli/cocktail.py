"""`zaq cocktail`."""

import tempfile
from pathlib import Path
from typing import Any

import click

from zaq.cli.options import PATH, THERE, columns, device_option, progress, talk_options
from zaq.config.bounds import json_text
from zaq.errors import OutputError

__all__ = ["cocktail"]


@click.command()
@click.argument("runs", type=THERE, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, required=True, help="The file, as painters.safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option(
    "--steps", type=click.IntRange(0, 10**6), default=60, show_default=True, help="Of each rooting, and of the tuning."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print how good they are as JSON.")
@talk_options
def cocktail(
    runs: tuple[Path, ...], output: Path, overwrite: bool, steps: int, seed: int, device: str, as_json: bool, level: str
) -> None:
    """The generators of several RUNs as one file, for zaq quantize --generator. No data is read.

    All the others learn, from the weights of the first, to draw what they drew; then their weights can be averaged.
    """
    _require_a_place(output, overwrite)
    import time

    from zaq.cocktail import cocktail as mixed
    from zaq.compute.devices import device_named
    from zaq.run import write_file
    from zaq.synth.generator_file import content

    started = time.monotonic()
    made, found = mixed(runs, steps, seed, progress(level), device_named(device))
    write_file(output, content(made))
    minutes = (time.monotonic() - started) / 60
    networks = [of.name for of in made.of]
    if as_json:
        pairs = zip(networks, found, strict=True)
        rows = [{"network": name, **{kind: vars(j) for kind, j in row.items()}} for name, row in pairs]
        click.echo(json_text({"minutes": minutes, "networks": rows}, indent=1))
        return
    click.echo(columns(_table(networks, found)))
    size = output.stat().st_size / 1024
    click.echo(f"{output}: {size:.0f} KB, {minutes:.1f} min, no data read; zaq quantize MODEL --generator {output}")


def _table(networks: list[str], found: list[dict[str, Any]]) -> list[list[str]]:
    """A row a network: how far each generator's images are from its batch norms, and how many are of their class."""
    rows = [["images for", *(f"{kind}: {what}" for kind in found[0] for what in ("batch norm", "class"))]]
    for name, row in zip(networks, found, strict=True):
        rows.append([name, *(t for j in row.values() for t in (f"{j.batch_norm:.2f}", f"{100 * j.agreement:.0f} %"))])
    return rows


def _require_a_place(output: Path, overwrite: bool) -> None:
    """Raise OutputError for a file that cannot be written, before minutes go into what it is to hold."""
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; -o names a file.")
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; name another file with -o, or say --overwrite.")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror or error}).") from error
