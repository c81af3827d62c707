"""What an option's value can be: what is refused at once, and what a shell offers where TAB is pressed.

The names stand here as plain words where the module that has them would take a second to import; a test holds that they
are the same.
"""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from zaq.cli.guess import guess
from zaq.config.names import METHODS
from zaq.config.normalizations import ALREADY, NORMALIZATIONS
from zaq.errors import unknown

__all__ = ["DATA", "FORMS", "METHODS", "NORMALIZE", "PRECISIONS", "SOURCE", "TARGETS", "TASKS", "Choice", "Spelled"]

TARGETS = ("onnxruntime", "onnxruntime-arm", "tensorrt", "openvino", "qnn")
FORMS = ("qdq", "packed", "qoperator", "ort", "float")
TASKS = ("classification", "detection", "segmentation", "image")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Choice(click.Choice):  # type: ignore[type-arg]
    """One of some names; a name that is none of them suggests the near one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in self.choices:
            self.fail(unknown("name", str(value), self.choices), param, ctx)
        return value


class Spelled(click.ParamType):  # type: ignore[type-arg]
    """Text that may begin with, or be, one of some words, which a shell offers; files too, where `files`. Whoever reads
    it checks it.
    """

    name = "text"

    def __init__(self, words: tuple[str, ...], files: bool = False) -> None:
        self.words, self.files = words, files

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in self.words if word.startswith(incomplete)]
        return found or ([CompletionItem(incomplete, type="file")] if self.files else [])


class Data(Spelled):
    """`KIND:PATH`. A path alone is taken for what it looks like, and the kind is said."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if f"{value}".startswith(self.words) or not Path(value).exists():
            return value
        kind = guess(Path(value))
        if not kind:
            self.fail(f"{value}: of what kind is it? Write KIND:{value}, one of {', '.join(self.words)}", param, ctx)
        click.echo(f"--data {value}: is taken for {kind}:{value}", err=True)
        return f"{kind}:{value}"


NORMALIZE = Choice([*NORMALIZATIONS, ALREADY])
SOURCE = Spelled(("zoo:resnet20_cifar10", "timm:", "torchvision:", "hf-hub:"), files=True)
DATA = Data(("cifar10:", "cifar100:", "folder:", "csv:", "npz:", "yolo:", "masks:", "images:"))
