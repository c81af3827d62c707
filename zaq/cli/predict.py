"""`zaq predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zaq.cli.options import PATH, Number, card_options, card_overrides
from zaq.config.bounds import json_text
from zaq.errors import DataError, OutputError, UserError

if TYPE_CHECKING:
    from zaq.use.answers import Answer

__all__ = ["predict"]

KEYS = ("quantized", "float")  # of the answers in JSON, whatever the bits
DRAWN = ("detection", "image", "segmentation")  # tasks whose answers are seen


@click.command()
@click.argument("run", type=PATH)
@click.argument("photos", type=PATH, nargs=-1, required=True, metavar="PHOTO...")
@click.option("--task", help="classification, detection, segmentation, image or embedding; the card's by default.")
@click.option("--decode", type=PATH, help="A detector's decoding constants, as for zaq eval.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes are told.")
@click.option("--score", type=Number(0, 1), default=0.3, show_default=True, help="The least score of a box.")
@click.option(
    "-o", "--output", type=PATH, help="Folder for pictures: boxes and masks drawn, images made; ours and the float's."
)
@click.option("--overwrite", is_flag=True, help="Replace pictures that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@card_options
def predict(
    run: Path,
    photos: tuple[Path, ...],
    task: str | None,
    decode: Path | None,
    top: int,
    score: float,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    **card: Any,
) -> None:
    """What RUN's file says of PHOTOs, and what the float network it was made from says: classes by name, boxes, masks,
    images or vectors.

    RUN may be the .onnx file alone; there is no float network beside that.
    """
    from zaq.data.pixels import photograph, require_image
    from zaq.evaluate import read_decode
    from zaq.use.answers import READERS, Asked, reader_of
    from zaq.use.network import deployed

    for path in photos:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; name its images, as {path}/*.jpg.")
        require_image(path)
    constants = {"decode": read_decode(decode)} if decode else {}
    opened = deployed(run, card_overrides(card) | constants)
    name = reader_of(opened.card, task)
    if decode and name != "detection":
        raise UserError(f"--decode goes with --task detection; the task is {name}.")
    if output is not None and name not in DRAWN:
        raise UserError(f"-o {output}: there is nothing to draw of --task {name}; --json has all that is known.")
    _require_free(output, [name for path in photos for name in _pictures(path)], overwrite)
    asked, told = Asked(opened.card, opened.names, top, score), []
    for path in photos:
        photo = photograph(path)
        found = {of: READERS[name](values, asked, photo.size) for of, values in opened.ask(photo, str(path)).items()}
        answers = {KEYS[i]: answer.fields() for i, answer in enumerate(found.values())}
        told.append({"image": str(path), "task": name, "bits": opened.bits} | answers)
        if not as_json:
            _show(str(path), found)
        for place, answer in zip(_pictures(path), found.values(), strict=False):
            picture = answer.picture(photo) if output is not None else None
            if output is not None and picture is not None:
                picture.save(output / place)
    if as_json:
        click.echo(json_text(told, indent=1))
    elif output is not None:
        click.echo(f"pictures in {output}/")


def _pictures(photo: Path) -> tuple[str, str]:
    """What ours and the float network's picture of a photograph are called."""
    return f"{photo.stem}.png", f"{photo.stem}.float.png"


def _require_free(output: Path | None, names: list[str], overwrite: bool) -> None:
    """Make the folder for pictures. Raises UserError where two photographs would make one, OutputError where one is
    there already.
    """
    if output is None:
        return
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two photographs would both be written to {output / twice}; say them one after another.")
    if not overwrite and (there := next((output / name for name in names if (output / name).exists()), None)):
        raise OutputError(f"{there}: exists already; name another folder with -o, or say --overwrite.")
    output.mkdir(parents=True, exist_ok=True)


def _show(photo: str, found: dict[str, "Answer"]) -> None:
    """A table of what each network says."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    first, other = [*found.values(), None][:2]
    assert first is not None
    (about,), *rows = first.rows(other)
    table = Table(title=Text(photo, "bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(about, "dim"))
    for name in found:
        table.add_column(Text(name, "dim"), justify="left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
