"""`zaq eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zaq.cli.kinds import DATA, TASKS, Choice
from zaq.cli.options import PATH, card_options, card_overrides, device_option, progress
from zaq.config.bounds import json_text
from zaq.errors import UserError

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["evaluate"]


@click.command(name="eval")
@click.argument("run", type=PATH)
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
@click.option("--teacher", help="The float model that --task image compares with.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first images.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@card_options
def evaluate(
    run: Path,
    data: str,
    task: str | None,
    decode: Path | None,
    teacher: str | None,
    limit: int | None,
    device: str,
    as_json: bool,
    **card: Any,
) -> None:
    """How good RUN's ONNX file is, in onnxruntime, on labelled images: top-1, mAP or mIoU; or how like the float
    model's its images are. RUN may be the .onnx file alone.

    How images are prepared is stored with the run; the flags say it otherwise.
    """
    from zaq.compute.devices import device_named
    from zaq.evaluate import TASKS, class_names, read_decode, stored_card, task_of
    from zaq.export.session import session, takes
    from zaq.ir.move import onto
    from zaq.run import Run

    where = device_named(device)

    path = run if run.is_file() else Run.open(run) / "model.onnx"
    known = stored_card(path) if run.is_file() else Run.open(run).card()
    known = known.override(class_names=class_names(path))
    changed = known.override(**card_overrides(card), decode=read_decode(decode) if decode else None)
    if not takes(session(path), changed.input):
        shape = tuple(session(path).get_inputs()[0].shape[1:])
        raise UserError(f"{path}: takes inputs of {shape}; --input-shape, or its card, says {changed.input}.")
    name = task_of(changed, task)
    for flag, given, needed in (("--decode", decode, "detection"), ("--teacher", teacher, "image")):
        if given and name != needed:
            raise UserError(f"{flag} goes with --task {needed}; the task is {name}.")
    score = TASKS[name](
        session(path), data, changed, limit, progress(), teacher and onto(_teacher(teacher, path), where)
    )
    click.echo(json_text(score.fields()) if as_json else str(score))


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
