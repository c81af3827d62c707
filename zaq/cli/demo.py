"""`zaq demo`."""

from pathlib import Path
from typing import Any

import click

from zaq.cli.options import PATH, Number, card_options, card_overrides
from zaq.errors import OutputError

__all__ = ["demo"]


@click.command()
@click.argument("run", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the page.")
@click.option("--ort", type=PATH, help="Folder of the npm package onnxruntime-web; else it is fetched once, 33 MB.")
@click.option("--task", help="As for zaq predict; the card's by default.")
@click.option("--decode", type=PATH, help="A detector's decoding constants, as for zaq eval.")
@click.option("--score", type=Number(0, 1), default=0.3, show_default=True, help="The least score of a box.")
@click.option("--overwrite", is_flag=True, help="Replace a page that is there.")
@card_options
def demo(
    run: Path,
    output: Path,
    ort: Path | None,
    task: str | None,
    decode: Path | None,
    score: float,
    overwrite: bool,
    **card: Any,
) -> None:
    """A page that runs RUN's file in the browser, on a photograph or the camera, the float network beside it.

    It is a folder of plain files for any web server; photographs stay where they are, and it works offline.
    """
    from zaq.evaluate import read_decode
    from zaq.run import write_file
    from zaq.use.answers import reader_of
    from zaq.use.network import deployed
    from zaq.use.runtime import runtime_files
    from zaq.use.site import site_files

    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not overwrite):
        raise OutputError(f"{output}: exists already; name another folder with -o, or say --overwrite.")
    constants = {"decode": read_decode(decode)} if decode else {}
    opened = deployed(run, card_overrides(card) | constants)
    files = site_files(opened, reader_of(opened.card, task), opened.name, score, runtime_files(ort))
    for name, content in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(output / name, content)
    size = sum(map(len, files.values())) / 2**20
    click.echo(f"{output}/: {size:.1f} MB. python -m http.server -d {output} shows it at http://localhost:8000")
    click.echo("any web server can have it; cameras are given to pages of https:// and of localhost alone")
