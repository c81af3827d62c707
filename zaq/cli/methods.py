"""`zaq methods`."""

import dataclasses
import inspect

import click

from zaq.cli.kinds import METHODS, Spelled
from zaq.config.bounds import json_text

__all__ = ["methods"]


@click.command()
@click.argument("name", required=False, type=Spelled(METHODS))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """The methods there are; of one, NAME, every constant that `-s` sets: its range, default, unit and sense."""
    from zaq.config.plugins import names
    from zaq.methods import kind_named
    from zaq.methods.settings import settings_of

    if name is None:
        known = {n: _about(kind_named(n)) for n in [*METHODS, *names("zaq.methods")]}
        rows = [f"{n:<14} {text}" for n, text in known.items()]
        click.echo(
            json_text(known, indent=1) if as_json else "\n".join([*rows, "zaq methods NAME lists its constants."])
        )
        return
    kind = kind_named(name)
    settings = settings_of(kind)
    if as_json:
        click.echo(json_text([dataclasses.asdict(s) for s in settings], indent=1))
        return
    width = max((len(s.name) for s in settings), default=0)
    click.echo(f"{kind.name or name}: {_about(kind)}\n")
    for s in settings:
        about = f"; {s.about}" if s.about else ""
        click.echo(f"  -s {s.name + '=':<{width + 1}}{s.default}\n      {s.values}{about}")


def _about(kind: type) -> str:
    """What the file that holds a method says of it first, which names its paper; else its class."""
    module = inspect.getmodule(kind)
    text = (module and module.__doc__) or kind.__doc__ or ""
    return " ".join(text.strip().partition("\n\n")[0].split())
