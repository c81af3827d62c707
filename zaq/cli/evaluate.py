"""`zaq eval`."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zaq.cli.kinds import DATA, TASKS, Choice
from zaq.cli.options import PATH, THERE, card_options, card_overrides, columns, device_option, progress, talk_options
from zaq.config.bounds import json_text
from zaq.errors import OutputError, RunError, UserError

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from zaq.config.card import Card
    from zaq.evaluate.compare import Measured
    from zaq.run import Run

__all__ = ["evaluate"]


@click.command(name="eval")
@click.argument("run", type=THERE)
@click.option(
    "--data",
    type=DATA,
    required=True,
    help="cifar10:DIR, cifar100:DIR, folder:DIR (a folder a class), csv:DIR (labels.csv), npz:FILE; "
    "yolo:DIR (boxes), masks:DIR, images:DIR for other tasks.",
)
@click.option("--task", type=Choice(TASKS), help="What is measured; the card's task by default.")
@click.option(
    "--decode",
    type=PATH,
    help="JSON file of the constants that make boxes of a detector's outputs; the card's by default.",
)
@click.option("--teacher", help="The float model, where RUN keeps none; it is measured beside the file.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first images.")
@click.option("--per-class", is_flag=True, help="Classification: every class, the one that lost most first.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@talk_options
@card_options
def evaluate(
    run: Path,
    data: str,
    task: str | None,
    decode: Path | None,
    teacher: str | None,
    limit: int | None,
    per_class: bool,
    device: str,
    as_json: bool,
    level: str,
    **card: Any,
) -> None:
    """How good RUN's ONNX file is, in onnxruntime, on labelled images: top-1 and top-5, mAP or mIoU, beside the float
    network that it was made from; or how like that one's its images are.

    RUN may be any .onnx file alone, zaq's or another's with --normalize. How images are prepared is stored with a run;
    the flags say it otherwise.
    """
    from zaq.compute.devices import device_named
    from zaq.evaluate import read_decode, task_of
    from zaq.evaluate.compare import measure
    from zaq.ir.move import onto
    from zaq.use.network import FLOAT, deployed

    where = device_named(device)
    opened = deployed(run, card_overrides(card) | ({"decode": read_decode(decode)} if decode else {}))
    name = task_of(opened.card, task)
    for flag, given, needed in (("--decode", decode, "detection"), ("--per-class", per_class, "classification")):
        if given and name != needed:
            raise UserError(f"{flag} goes with --task {needed}; the task is {name}.")
    found = _teacher(teacher, opened.path) if teacher else opened.teacher
    measured = measure(name, opened.ours, found and onto(found, where), data, opened.card, limit, progress(level))
    if opened.run is not None and opened.path.name == "model.onnx":
        _keep(opened.run, data, limit, card_overrides(card), measured)
    if as_json:
        told = {"file": str(opened.path), "data": data, "limit": limit, "task": name} | measured.fields(per_class)
        click.echo(json_text(told, indent=1))
        return
    for called, score in ((FLOAT, measured.teacher), (opened.bits, measured.ours)):
        if score is not None:
            click.echo(f"{called}: {score}" if found else f"{score}")
    if lost := measured.lost():
        click.echo(lost)
    if per_class:
        click.echo(columns(_classes(measured, opened.card)))


def _keep(run: "Run", data: str, limit: int | None, card: dict[str, Any], measured: "Measured") -> None:
    """Leave what counts in the run, for `zaq compare`. A run that cannot be written into is measured all the same."""
    fields = measured.fields()
    metric = next(iter(fields))
    row = {"metric": metric, "value": fields[metric], "data": data, "limit": limit, "card": card}
    with suppress(OutputError, RunError):
        run.keep_measured(row | {"fields": fields})


def _classes(measured: "Measured", card: "Card") -> list[list[str]]:
    """A table of the classes there are images of."""
    rows = [["class", "images", *(["float", "ours", "lost"] if measured.teacher else ["ours"])]]
    for one in measured.classes():
        label = int(one["class"])
        named = card.class_names[label] if label < len(card.class_names) else str(label)
        values = (f"{one[key]:.1f}" for key in ("float", "top1", "drop") if key in one)
        rows.append([named[:40], f"{one['images']:.0f}", *values])
    return rows


def _teacher(source: str, path: Path) -> "GraphModule":
    """The float model that a file was made from."""
    from zaq.config.bounds import plain_json
    from zaq.export.session import properties
    from zaq.sources import load

    model = load(source)
    try:
        made_from = plain_json(properties(path).get("zaq.source", "{}"))
        made_from["name"] = str(made_from.get("name"))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its property zaq.source, which names the model it came from, is no JSON.") from error
    if made_from.get("sha256") not in (None, model.sha256):
        raise UserError(
            f"--teacher {source}: {path} was made from another model, {made_from['name']} (their hashes differ)."
        )
    return model.graph
