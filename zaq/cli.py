"""The command line: parse, call the API, print. `zaq quantize`, `inspect`, `verify`, `eval`."""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import click

from zaq.errors import BitsError, Interrupted, UserError, ZaqError, unknown

__all__ = ["main"]

PATH = click.Path(path_type=Path)


class Group(click.Group):
    """Errors become a sentence and an exit code; an unknown command suggests the near one."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
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


def card_options(command: Any) -> Any:
    """The flags that say what is known of the input, over what the model's card says."""
    for option in reversed(
        [
            click.option("--normalize", help="How the model expects its input: imagenet, cifar10, unit, ... or none."),
            click.option("--mean", help="Mean of x/255 per channel, as 0.485,0.456,0.406."),
            click.option("--std", help="Standard deviation of x/255 per channel."),
            click.option("--input-shape", help="C,H,W, to check against the model's own."),
            click.option("--resize", type=int, help="Shorter side of an image before the crop, for zaq eval."),
            click.option("--crop", type=int, help="Side of the centre crop, for zaq eval."),
        ]
    ):
        command = option(command)
    return command


def card_overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """Card fields from the flags of `card_options`."""
    from zaq.config import NORMALIZATIONS

    found: dict[str, Any] = {k: flags[k] for k in ("resize", "crop") if flags.get(k) is not None}
    if flags.get("normalize"):
        if flags["normalize"] not in NORMALIZATIONS:
            raise UserError("--normalize: " + unknown("normalisation", flags["normalize"], NORMALIZATIONS))
        found["mean"], found["std"] = NORMALIZATIONS[flags["normalize"]]
    for flag, name, kind in (("mean", "mean", float), ("std", "std", float), ("input_shape", "input", int)):
        if flags.get(flag):
            try:
                found[name] = tuple(kind(v) for v in flags[flag].replace("x", ",").split(","))
            except ValueError as error:
                raise UserError(f"--{flag.replace('_', '-')} {flags[flag]}: numbers separated by commas are expected.") from error
    if ("mean" in found) != ("std" in found):
        raise UserError("--mean and --std go together; one of them is missing.")
    return found


def method_of(name: str, settings: tuple[str, ...]) -> Any:
    """The method, with `-s key=value` typed by the fields of its dataclass."""
    from zaq.methods import METHODS

    if name not in METHODS:
        raise BitsError("--method: " + unknown("method", name, METHODS))
    kind = METHODS[name]
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in hints:
            raise UserError(f"-s {setting}: " + unknown(f"setting of {name}", key, hints) + " Write key=value.")
        values[key] = _typed(setting, text, hints[key])
    return kind(**values)


def _typed(setting: str, text: str, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(k for k in kinds if k is not types.NoneType)
    try:
        if types.NoneType in kinds and text.lower() == "none":
            return None
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if typing.get_origin(kind) is tuple:
            return tuple(float(v) for v in text.split(",") if v)
        return kind(text)
    except (KeyError, ValueError) as error:
        raise UserError(f"-s {setting}: {text!r} is no {getattr(kind, '__name__', kind)}.") from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zaq")
def main() -> None:
    """Make a trained vision model small without its training data: 8 to 2 bits, as an integer ONNX file."""


@main.command()
@click.argument("source", default="zoo:resnet20_cifar10")
@click.option("--bits", default="w4a4", show_default=True, help="Bits of weights and activations, w2a2 to w8a8.")
@click.option("--first-last", default="8", show_default=True, help="Bits of the first and the last layer, or 'same'.")
@click.option("--int8-weights", is_flag=True, help="Never store weights as uint8: faster, but wrong on x86 without VNNI.")
@click.option("--method", default="zaq", show_default=True, help="The algorithm.")
@click.option("-s", "settings", multiple=True, metavar="KEY=VALUE", help="A constant of the method; repeatable.")
@click.option("--effort", default="default", show_default=True, help="fast, default or best.")
@click.option("--seed", default=0, show_default=True, help="The same seed repeats a CPU run bit for bit.")
@click.option("-o", "--output", type=PATH, help="Folder for the run; <model>-<bits> by default.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there.")
@click.option("--dry-run", is_flag=True, help="Print what would happen, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@card_options
def quantize(source: str, bits: str, first_last: str, int8_weights: bool, method: str, settings: tuple[str, ...], effort: str,
             seed: int, output: Path | None, overwrite: bool, dry_run: bool, as_json: bool, **card: Any) -> None:  # fmt: skip
    """Quantize SOURCE, a .pt2 file or zoo:NAME; the shipped CIFAR-10 ResNet-20 if none is named."""
    from zaq.config import EFFORTS, QConfig
    from zaq.pipeline import quantize_run
    from zaq.sources import load

    if first_last != "same" and not first_last.isdigit():
        raise BitsError(f"--first-last {first_last}: a number of bits is expected, or 'same'.")
    if effort not in EFFORTS:
        raise BitsError("--effort: " + unknown("effort", effort, EFFORTS))
    qconfig = QConfig.parse(bits, None if first_last == "same" else int(first_last))
    algorithm = method_of(method, settings)
    model = load(source, card_overrides(card))
    folder = output or Path(f"{model.name}-{qconfig}")
    if dry_run:
        from zaq.inspect import describe_model

        click.echo(describe_model(model, qconfig))
        click.echo(f"\nwould run {dataclasses.asdict(algorithm)}\nwith effort {effort}, seed {seed}, into {folder}{'/'}")
        return
    report = quantize_run(model, qconfig, algorithm, effort, seed, folder, overwrite, int8_weights, _progress())
    click.echo(json.dumps(report, indent=1) if as_json else _summary(folder, report))
    if report["interrupted"]:
        raise Interrupted(f"interrupted; what was finished is in {folder}/ and says so.")


def _summary(folder: Path, report: dict[str, Any]) -> str:
    options, agreement, sizes = report["options"], report["agreement"], report["sizes"]
    lines = [f"{options['source']['name']} at {options['bits']}, {report['minutes']:.1f} min, no data read"]
    lines += [f"  note: {note}" for note in report["notes"]]
    lines += [f"  note: {s['name']}: {s['note']}" for s in report["stages"] if s["note"]]
    if "top1_agreement" in agreement:
        share, samples = 100 * agreement["top1_agreement"], agreement["samples"]
        lines.append(f"  same top-1 as the float model on {share:.1f} % of {samples} synthetic samples (mostly harder than real ones)")
    lines.append(f"  file against checkpoint: {report['parity_sentence']}")
    lines.append(f"  {sizes['model.onnx'] / 1024:.0f} KB, {sizes['float weights'] / 1024:.0f} KB as float")
    lines.append(f"  {folder}/model.onnx, and report.html beside it")
    return "\n".join(lines)


@main.command(name="inspect")
@click.argument("source", default="zoo:resnet20_cifar10")
@click.option("--bits", default="w4a4", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@card_options
def inspect_model(source: str, bits: str, as_json: bool, **card: Any) -> None:
    """What is in SOURCE, and what would be quantized at which bits. Nothing is written."""
    from zaq.config import QConfig
    from zaq.inspect import describe_model, facts
    from zaq.sources import load

    model, qconfig = load(source, card_overrides(card)), QConfig.parse(bits)
    click.echo(json.dumps(facts(model, qconfig), indent=1) if as_json else describe_model(model, qconfig))


@main.command()
@click.argument("run", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def verify(run: Path, as_json: bool) -> None:
    """RUN's ONNX file in onnxruntime against its quantized checkpoint, on synthetic samples."""
    from zaq.export.verify import compare
    from zaq.run import Run

    opened = Run.open(run)
    parity = compare(opened / "model.onnx", opened.student(), opened.samples())
    if as_json:
        click.echo(json.dumps(parity.to_dict(), indent=1))
        return
    click.echo(parity.sentence())
    click.echo("kernels: " + ", ".join(f"{n} {k}" for k, n in parity.kernels.items()))
    if parity.float_kernels:
        click.echo("in float: " + ", ".join(parity.float_kernels))


@main.command(name="eval")
@click.argument("run", type=PATH)
@click.option("--data", required=True, help="cifar10:DIR, cifar100:DIR, csv:DIR (labels.csv with file,label).")
@click.option("--limit", type=int, help="Only the first images.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def evaluate(run: Path, data: str, limit: int | None, as_json: bool) -> None:
    """Top-1 of RUN's ONNX file, in onnxruntime, on labelled images. Only this command reads any."""
    from zaq.evaluate import top1
    from zaq.run import Run

    opened = Run.open(run)
    score = top1(opened / "model.onnx", data, opened.card(), limit)
    fields = {"top1": score.percent, "interval": score.interval, "correct": score.correct, "total": score.total}
    click.echo(json.dumps(fields) if as_json else str(score))


def _progress() -> Any:
    from zaq.progress import Progress, TerminalProgress

    return TerminalProgress() if sys.stderr.isatty() else Progress()
