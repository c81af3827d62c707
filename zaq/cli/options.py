"""What verbs share: flags about source and input, `-s key=value` typed by a method's fields, the progress bar."""

import dataclasses
import math
import os
import re
import sys
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from zaq.cli.kinds import METHODS, NORMALIZE
from zaq.config.bounds import plain_json
from zaq.config.normalizations import ALREADY, BLUE_FIRST, NORMALIZATIONS
from zaq.errors import BitsError, SourceError, UserError, unknown

__all__ = [
    "PATH",
    "THERE",
    "MethodOption",
    "Number",
    "Seconds",
    "There",
    "card_options",
    "card_overrides",
    "columns",
    "device_option",
    "ends",
    "layer_options",
    "layers_of",
    "load_source",
    "method_of",
    "progress",
    "runs_code",
    "size_in_bytes",
    "source_options",
    "talk_options",
]

PATH = click.Path(path_type=Path)
LEVELS = ("warning", "info", "debug")
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # where several processes do a run, 0 in the first


class There(click.ParamType):  # type: ignore[type-arg]
    """A file or a folder that is there; looked for before torch is imported."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from zaq.config.names import missing

        path = Path(value)
        if not path.exists():
            raise SourceError(missing(path))
        return path


THERE = There()


def talk_options(command: Any) -> Any:
    """`--log-level`, `-q` and `-v`: how much is said on stderr while it lasts. The command gets `level`."""
    for option in (
        click.option("-v", "--verbose", "level", flag_value="debug", help="Say what each stage was worth, too."),
        click.option("-q", "--quiet", "level", flag_value="warning", help="Say nothing while it lasts."),
        click.option(
            "--log-level",
            "level",
            type=click.Choice(LEVELS),
            default="info",
            show_default=True,
            help="How much is said on stderr while it lasts: warning is -q, debug is -v.",
        ),
    ):
        command = option(command)
    return command


def device_option(command: Any) -> Any:
    """`--device`."""
    said = "Where torch computes: auto, cpu, cuda, cuda:1, mps, ..."
    return click.option("--device", default="auto", show_default=True, help=said)(command)


def card_options(command: Any) -> Any:
    """The flags that say what is known of the input, over what the model's card says."""
    for option in reversed(
        [
            click.option(
                "--normalize",
                type=NORMALIZE,
                metavar="NAME",
                help="How the model expects pixels: imagenet, cifar10, 0-255, 0-1, -1-1, caffe (BGR, less means), ...; "
                "none: already normalised.",
            ),
            click.option("--mean", help="Mean of x/255 per channel, as 0.485,0.456,0.406."),
            click.option("--std", help="Standard deviation of x/255 per channel."),
            click.option("--labels", metavar="FILE", help="Names of the classes in order: one a line, or JSON."),
            click.option("--input-shape", help="C,H,W; where neither source nor card says it."),
            click.option(
                "--resize",
                type=click.IntRange(1, 2**16),
                help="Shorter side of an image before the crop, for zaq eval.",
            ),
            click.option("--crop", type=click.IntRange(1, 2**16), help="Side of the centre crop, for zaq eval."),
        ]
    ):
        command = option(command)
    return command


def source_options(command: Any) -> Any:
    """The flags that say how a source is read, and those of its card."""
    for option in reversed(
        [
            click.option(
                "--arch", help="What a file of weights is for: timm:NAME, torchvision:NAME, package.module:factory, ..."
            ),
            click.option(
                "--kwargs", help="Arguments for the call that makes the network, as JSON: '{\"num_classes\": 10}'."
            ),
            click.option(
                "--bind",
                multiple=True,
                metavar="NAME=V,V",
                help="Numbers for an ONNX file's other input, the same in every use: scale_factor=1,1; repeatable.",
            ),
            click.option(
                "--dynamic",
                help="Sizes that stay open in the file: H,W, or one of them; an ONNX file's are as it has them.",
            ),
            click.option(
                "--layout", help="NCHW or NHWC, where an ONNX file or a .pt2 does not show it; what comes out keeps it."
            ),
            click.option("--random-weights", is_flag=True, help="Of a library's network take the architecture alone."),
        ]
    ):
        command = option(command)
    return card_options(command)


def load_source(source: str, flags: dict[str, Any]) -> Any:
    """The source that SOURCE and the flags of `source_options` name."""
    from zaq.ir.sizes import dimensions
    from zaq.sources import load

    try:
        kwargs = plain_json(flags["kwargs"] or "{}")
        if not isinstance(kwargs, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(
            f"--kwargs {flags['kwargs']:.80}: is no JSON object ({error}); write it as '{{\"num_classes\": 10}}'."
        ) from error
    model = load(
        source,
        card_overrides(flags),
        arch=flags["arch"],
        kwargs=kwargs,
        random_weights=flags["random_weights"],
        bind=_bound(flags.get("bind", ())),
        dynamic=dimensions(flags.get("dynamic") or ""),
        layout=flags.get("layout") or "",
    )
    if flags.get("normalize") == ALREADY:
        model = replace(model, card=replace(model.card, mean=None, std=None, order="rgb"))
    return model


def _bound(given: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """The numbers of each `--bind NAME=V,V`."""
    found = {}
    for text in given:
        name, _, numbers = text.rpartition("=")
        try:
            if not name:
                raise ValueError("no name")
            found[name] = tuple(float(v) for v in numbers.split(","))
        except ValueError as error:
            raise UserError(f"--bind {text}: a name and numbers are expected, as scale_factor=1,1.") from error
    return found


def card_overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """Card fields from the flags of `card_options`."""
    from zaq.config.labels import read_labels

    found: dict[str, Any] = {k: flags[k] for k in ("resize", "crop") if flags.get(k) is not None}
    if flags.get("labels"):
        found["class_names"] = read_labels(Path(flags["labels"]))
    if flags.get("normalize") == ALREADY and (flags.get("mean") or flags.get("std")):
        raise UserError(
            f"--normalize {ALREADY}: the input is normalised already; --mean and --std cannot be beside it."
        )
    if flags.get("normalize") not in (None, ALREADY):
        found["mean"], found["std"] = NORMALIZATIONS[flags["normalize"]]
        found["order"] = "bgr" if flags["normalize"] in BLUE_FIRST else None
    for flag, name, kind in (("mean", "mean", float), ("std", "std", float), ("input_shape", "input", int)):
        if flags.get(flag):
            try:
                found[name] = tuple(kind(v) for v in flags[flag].replace("x", ",").split(","))
            except ValueError as error:
                raise UserError(
                    f"--{flag.replace('_', '-')} {flags[flag]}: numbers separated by commas are expected."
                ) from error
    if ("mean" in found) != ("std" in found):
        raise UserError("--mean and --std go together; one of them is missing.")
    return found


def layers_of(asked: tuple[str, ...], exclude: tuple[str, ...]) -> dict[str, str]:
    """`QConfig.layers` of `--layer-bits REGEX=BITS` and `--exclude REGEX`, which goes before it."""
    from zaq.config.bits import FLOAT

    found = {}
    for text in asked:
        pattern, equals, bits = text.rpartition("=")
        if not equals or not pattern:
            raise BitsError(f"--layer-bits {text}: write REGEX=BITS, as 'layer4=8', 'fc=w8a8' or 'stem.*=float'.")
        found[pattern] = bits
    return found | dict.fromkeys(exclude, FLOAT)


def layer_options(command: Any) -> Any:
    """The flags that say bits of single layers."""
    for option in (
        click.option(
            "--layer-bits",
            multiple=True,
            metavar="REGEX=BITS",
            help="Other bits for layers whose module, or a module around it, is called so: 'layer4=8', 'fc=w8a4', "
            "'stem.*=float', 'head=stored' (8 bits in the file, float when it runs); repeatable, the last that fits "
            "counts. zaq inspect lists names.",
        ),
        click.option(
            "--exclude", multiple=True, metavar="REGEX", help="Leave such layers in float: --layer-bits REGEX=float."
        ),
    ):
        command = option(command)
    return command


def ends(text: str) -> int | str | None:
    """`--first-last`: bits, None for 'same', "" for what the placement has."""
    if not re.fullmatch(r"same|\d{0,9}", text):
        raise BitsError(f"--first-last {text}: a number of bits is expected, or 'same'.")
    return None if text == "same" else int(text) if text else ""


def size_in_bytes(text: str | None) -> int | None:
    """`--target-size`: see `zaq.config.memory.in_bytes`."""
    from zaq.config.memory import in_bytes

    return None if text is None else in_bytes(text, "--target-size", "0.3MB or 300KB")


def runs_code(text: str) -> bool:
    """Whether a source, an architecture, a method or a setting names code of the user's own: `package.module:name`."""
    from zaq.sources import SOURCES

    kind, colon, _ = text.rpartition("=")[2].partition(":")
    return bool(colon) and f"{kind}:" not in SOURCES


class Number(click.FloatRange):
    """A number in a range, which NaN and infinity are in none of."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return found


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A time in seconds: 90, 90s or 1.5m."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+\.?\d*)(s|m)?", str(value).strip())
        if not match:
            self.fail(f"{value!r}: a time is expected, as 60s or 2m.", param, ctx)
        return float(match[1]) * (60 if match[2] == "m" else 1)


class MethodOption(click.Option):
    """`--method`, whose help names ours and the methods that installed packages bring."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from zaq.config.plugins import names

        record = super().get_help_record(ctx)
        return record and (record[0], ", ".join([*METHODS, *names("zaq.methods"), record[1]]))


def method_of(name: str, settings: tuple[str, ...]) -> Any:
    """The method, with `-s key=value` typed by its fields, and `-s stage.key=value` by those of its stages."""
    from zaq.methods import kind_named

    kind = kind_named(name)
    hints = {f.name: h for f, h in _fields(kind) if f.name != "stage_constants"}
    values: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        stage, dot, constant = key.partition(".")
        if equals and dot:
            constants[key] = _constant(setting, constant, text, _hint(kind, stage, constant, setting))
            continue
        if not equals or key not in hints:
            raise UserError(f"-s {setting}: " + unknown(f"setting of {name}", key, hints) + " Write key=value.")
        values[key] = _constant(setting, key, text, hints[key])
    return kind(**values, stage_constants=constants)


def _fields(kind: Any) -> list[tuple[Any, Any]]:
    """The fields of a dataclass that plain text can set, with their types."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [(f, hints[f.name]) for f in dataclasses.fields(kind)]


def _hint(kind: Any, stage: str, constant: str, setting: str) -> Any:
    """The type of a stage's constant."""
    named = {part: next(f.default for f in dataclasses.fields(part) if f.name == "name") for part in kind.parts}
    parts = {str(name).replace(" ", "-"): part for part, name in named.items() if name}
    part = parts.get(stage) or parts.get(stage.removeprefix("held-out-"))
    if part is None:
        hint = "" if parts else f" {kind.__name__}.parts names no stages; list those there that can be set."
        raise UserError(f"-s {setting}: " + unknown("stage", stage, parts) + hint)
    hints = {f.name: h for f, h in _fields(part) if f.name not in ("name", "held_out")}
    if constant not in hints:
        raise UserError(f"-s {setting}: " + unknown(f"constant of {stage}", constant, hints))
    return hints[constant]


def _constant(setting: str, name: str, text: str, hint: Any) -> Any:
    """The value that text gives a constant, in its range."""
    from zaq.config.constants import check_constant, plain_type

    kind, optional = plain_type(hint)
    try:
        if kind is None:
            raise ValueError("not to be set by text")
        value: Any
        if optional and text.lower() == "none":
            value = None
        elif kind is bool:
            value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        else:
            value = tuple(float(v) for v in text.split(",") if v) if kind is tuple else kind(text)
    except (KeyError, ValueError) as error:
        raise UserError(f"-s {setting}: {text!r} is no {kind.__name__ if kind else 'value for it'}.") from error
    try:
        check_constant(name, value, hint)
    except BitsError as error:
        raise BitsError(f"-s {setting}: {error}") from error
    return value


def progress(level: str = "info") -> Any:
    """Bars with the time left where a terminal shows them, else a line for whatever begins; nothing where `level` is
    `warning`, and in all processes but the first.
    """
    from zaq.engine.progress import LineProgress, Progress, TerminalProgress

    if level == "warning" or any(os.environ.get(name, "0") != "0" for name in RANKS):
        return Progress()
    return (TerminalProgress if sys.stderr.isatty() else LineProgress)(level == "debug")


def columns(rows: list[list[str]]) -> str:
    """A table for a terminal: the first column flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)
