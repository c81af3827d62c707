"""The command line: parse, call the API, print. A file a verb; what they share is in `options`."""

from typing import Any

import click

from zaq.cli.benchmark import benchmark
from zaq.cli.evaluate import evaluate
from zaq.cli.export import export
from zaq.cli.inspect import inspect_model
from zaq.cli.profile import profile
from zaq.cli.quantize import quantize
from zaq.cli.verify import verify
from zaq.engine.interruption import stopped_by_signals
from zaq.errors import ZaqError, unknown

__all__ = ["main"]


class Group(click.Group):
    """Errors become a sentence and an exit code; an unknown command suggests the near one."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with stopped_by_signals():
                return super().invoke(ctx)
        except ZaqError as error:
            click.echo(f"zaq: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("zaq: interrupted.", err=True)
            ctx.exit(1)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(unknown("command", args[0], self.commands), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zaq")
def main() -> None:
    """Make a trained vision model small without its training data: 8 to 2 bits, as an integer ONNX file."""


for verb in (quantize, inspect_model, export, verify, profile, evaluate, benchmark):
    main.add_command(verb)
