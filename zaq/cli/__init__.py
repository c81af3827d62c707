"""The command line: parse, call the API, print. A file a verb; what they share is in `options`.

Exit codes: 2, the call has to change; 1, the run went wrong; 130, Ctrl-C; 70, what nobody foresaw (`Group`).
"""

import errno
import os
import platform
import re
import shlex
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from zaq import __version__
from zaq.cli.benchmark import benchmark
from zaq.cli.demo import demo
from zaq.cli.doctor import doctor
from zaq.cli.evaluate import evaluate
from zaq.cli.explain import explain
from zaq.cli.export import export
from zaq.cli.inspect import inspect_model
from zaq.cli.kinds import SOURCE
from zaq.cli.methods import methods
from zaq.cli.predict import predict
from zaq.cli.profile import profile
from zaq.cli.quantize import quantize
from zaq.cli.score import score
from zaq.cli.verify import verify
from zaq.cli.watch import watch
from zaq.engine.interruption import stopped_by_signals
from zaq.errors import STOPPED, ZaqError, unknown

__all__ = ["main"]


HERE = Path(__file__).resolve().parents[1]
UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h
# What torch, numpy, onnxruntime, C++ and who loads libraries say where memory is not to be had.
NO_MEMORY = re.compile(
    r"can(no|')t allocate memory|not enough memory|out of memory|failed to (allocate|map segment)|bad_?alloc|"
    r"unable to allocate",
    re.I,
)


class Group(click.Group):
    """Errors become a sentence and an exit code, those that nobody foresaw too; an unknown command suggests the near
    one.
    """

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("NO_COLOR"):  # https://no-color.org; rich asks for it itself
            ctx.color = False
        try:
            with stopped_by_signals():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # nobody reads on, as behind `| head`: click ends without a word
            if ctx.params.get("debug"):
                click.echo(traceback.format_exc(), err=True, nl=False)
            said, code = _told(error)
        click.echo(f"zaq: {said}", err=True)
        ctx.exit(code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            meant = f" To quantize it: zaq quantize {args[0]}." if _is_a_source(args[0]) else ""
            raise click.UsageError(unknown("command", args[0], self.commands) + meant, ctx)
        return super().resolve_command(ctx, args)


def _is_a_source(text: str) -> bool:
    """Whether an argument where a command should be is a model: a file, or KIND:NAME."""
    return Path(text).exists() or text.startswith(SOURCE.words)


def _told(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code. What nobody foresaw is one line: a benchmark shows the last one."""
    if isinstance(error, ZaqError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", STOPPED
    if isinstance(error, OSError) and error.filename:  # of a place that a user named, and nobody looked at before
        return f"{error.filename!s:.200}: {error.strerror}.", 2
    found = " ".join(str(error).split())
    if isinstance(error, MemoryError) or NO_MEMORY.search(found):
        return (
            f"there is not enough memory for it ({found[:200] or 'MemoryError'}); free some, or ask for less at once: "
            "smaller or fewer images, a smaller batch.",
            1,
        )
    ours = [f for f in traceback.extract_tb(error.__traceback__) if HERE in Path(f.filename).parents]
    place = "".join(f" ({Path(f.filename).relative_to(HERE.parent)}, line {f.lineno})" for f in ours[-1:])
    parts = [f"{name} {_version(name)}" for name in ("torch", "onnx", "onnxruntime")]
    return (
        f"something that zaq did not foresee: {type(error).__name__}: {found[:400] or 'nothing more is said'}{place}. "
        f"Please report it, with this line, the command ({shlex.join(['zaq', *sys.argv[1:]])[:400]}) and what it "
        f"prints with --debug before the verb. zaq {__version__}, Python {platform.python_version()}, "
        f"{', '.join(parts)}.",
        UNFORESEEN,
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option(
    "--debug", is_flag=True, envvar="ZAQ_DEBUG", help="Before the verb: where an error arose, as Python prints it."
)
def main(debug: bool) -> None:
    """Make a trained vision model small without its training data: 8 to 2 bits, as an integer ONNX file."""


for verb in (
    quantize, inspect_model, export, verify, profile, evaluate, predict, demo, score, explain, watch, benchmark,
    methods, doctor,
):  # fmt: skip
    main.add_command(verb)
