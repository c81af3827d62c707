"""`zaq compare`."""

from pathlib import Path

import click

from zaq.cli.options import PATH, THERE, columns
from zaq.config.bounds import json_text
from zaq.errors import OutputError

__all__ = ["compare"]


@click.command()
@click.argument("runs", type=THERE, nargs=-1, required=True, metavar="RUN RUN ...")
@click.option("-o", "--output", type=PATH, default="compare.html", show_default=True, help="The page.")
@click.option("--overwrite", is_flag=True, help="Replace a page that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print it all as JSON.")
def compare(runs: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool) -> None:
    """Several RUNs beside each other: options that differ, size, speed, expected and measured accuracy, layers whose
    SQNR differs most, cost; on a page, and in short on the terminal.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; name another page with -o, or say --overwrite.")

    from zaq.comparison import compared, render
    from zaq.run import write_file

    found = compared(runs)
    write_file(output, render(found, output))
    if as_json:
        click.echo(json_text({"page": str(output)} | found.to_dict(), indent=1))
        return
    if found.unlike:
        click.echo("they are of different models: what one lost says nothing of another")
    head = ["", *(name[:24] for name in found.names)]
    asked = [[name, *(value[:24] for value in values)] for name, values in found.options.items()]
    came = [[figure.name, *figure.texts()] for figure in found.figures]
    click.echo(columns([head, *asked, *came]))
    click.echo(f"{output}: the same, with the layers that differ most")
