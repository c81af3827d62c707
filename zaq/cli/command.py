"""A command whose help says its options in groups, with examples, and that can read them from a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from zaq.config.bounds import plain_json, plain_text
from zaq.errors import UserError, unknown

__all__ = ["Command", "config_option", "said_in_config"]

CALL = "call"  # what options.json of a run calls the options that the run was asked for
HELD = "zaq.config"  # the file's name in a context


class Command(click.Command):
    """groups: title -> parameters; those in none come last, under `Options`. examples: commands, and what they do."""

    def __init__(
        self, *args: Any, groups: dict[str, tuple[str, ...]], examples: dict[str, str] | None = None, **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.groups, self.examples = groups, examples or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        grouped = [name for names in self.groups.values() for name in names]
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        others = tuple(str(p.name) for p in options if p.name not in grouped)
        for title, names in {**self.groups, "Options": others}.items():
            records = [p.get_help_record(ctx) for p in options if p.name in names]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                formatter.write_dl(list(self.examples.items()), col_max=60)


def config_option(command: Any) -> Any:
    """`--config`: options of a file, which those of the command line go before."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="Options from a JSON file: options.json of a run repeats it; those said here as well go before it.",
    )(command)


def said_in_config(ctx: click.Context, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Of some parameters those whose value a file gave: their flag, and each of its texts."""
    for name in names:
        if ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
            value = ctx.params[name]
            for text in value if isinstance(value, list | tuple) else [value]:
                yield _flag(next(p for p in ctx.command.params if p.name == name)), str(text)


def _read(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the options of a file the defaults of a call. Raises UserError for a file that holds none."""
    if path is None:
        return
    try:
        values = plain_json(plain_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path}: is not readable as JSON ({error}).") from error
    if isinstance(values, dict) and "qconfig" in values and not values.get(CALL):
        raise UserError(
            f"--config {path}: does not say what was asked for; runs that Python saved, or an older zaq, do not."
        )
    if isinstance(values, dict):
        values = values.get(CALL, values)
    if not isinstance(values, dict):
        raise UserError(f'--config {path}: an object of options is expected, as {{"bits": "w8a8", "seed": 1}}.')
    spelled = {_flag(p).lstrip("-"): str(p.name) for p in ctx.command.params if p.expose_value}
    known = {**{name: name for name in spelled.values()}, **spelled}
    for key in values:
        if key not in known:
            raise UserError(f"--config {path}: " + unknown("option", str(key), spelled))
    ctx.default_map = {known[key]: value for key, value in values.items() if value is not None}
    ctx.meta[HELD] = str(path)


def _flag(parameter: click.Parameter) -> str:
    """How a parameter is written: its longest flag, or an argument's own name."""
    return max(parameter.opts, key=len)
