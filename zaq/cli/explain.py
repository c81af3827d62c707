"""`zaq explain`."""

from pathlib import Path

import click

from zaq.cli.kinds import DATA
from zaq.cli.options import PATH, THERE, columns, progress, talk_options
from zaq.config.bounds import json_text
from zaq.errors import OutputError

__all__ = ["explain"]

SHOWN = 10  # units in the terminal


@click.command()
@click.argument("run", type=THERE)
@click.option(
    "--data",
    type=DATA,
    help="Labelled images, whose classes, boxes or masks are the concepts: cifar100:DIR, folder:DIR, yolo:DIR, "
    "masks:DIR, ... Without it the float network's own units are, on the run's synthetic samples.",
)
@click.option("--layer", help="Module whose channels are looked at; the last with a place in the image by default.")
@click.option("--units", type=click.IntRange(1, 4096), default=64, show_default=True, help="So many channels at most.")
@click.option("--limit", type=click.IntRange(min=1), help="So many images at most, evenly spread.")
@click.option("--length", type=click.IntRange(1, 10), default=3, show_default=True, help="Concepts of a form at most.")
@click.option("--beam", type=click.IntRange(1, 100), default=5, show_default=True, help="Forms kept at each step.")
@click.option("--groups", type=PATH, help='JSON file of classes that belong together: {"pet": ["cat", "dog"]}.')
@click.option("-o", "--output", type=PATH, default="explain.html", show_default=True, help="The page.")
@click.option("--overwrite", is_flag=True, help="Replace a page that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print it all as JSON.")
@talk_options
def explain(
    run: Path,
    data: str | None,
    layer: str | None,
    units: int,
    limit: int | None,
    length: int,
    beam: int,
    groups: Path | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
    level: str,
) -> None:
    """What single units of RUN's network see, as logical forms of concepts, before and after quantization: which units
    kept their form, which lost it, and which concept lost most.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; name another page with -o, or say --overwrite.")

    from zaq.explain.explain import STATES
    from zaq.explain.explain import explain as explained
    from zaq.explain.page import render
    from zaq.run import NEEDED, Run, write_file

    opened = Run.open(run, NEEDED)
    options = opened.options()
    changes, excited = explained(opened, data, layer, units, limit, length, beam, groups, progress(level))
    write_file(output, render(changes, excited, f"{options['source']['name']} at {options['bits']}"))
    if as_json:
        click.echo(json_text({"run": str(run), "page": str(output)} | changes.to_dict(), indent=1))
        return
    counts = ", ".join(f"{changes.count(state)} {state}" for state in STATES)
    click.echo(f"{changes.layer}, {len(changes.units)} units on {changes.images} images: {counts}")
    rows = [["unit", "", "float", "IoU", "quantized", "IoU"]]
    for unit in sorted(changes.units, key=lambda u: u.still - u.iou_before)[:SHOWN]:
        forms = [str(unit.before or "-")[:40], f"{unit.iou_before:.3f}", str(unit.after or "-")[:40]]
        rows.append([str(unit.number), unit.state, *forms, f"{unit.iou_after:.3f}"])
    click.echo(columns(rows))
    lost = [f"{name} {before:.2f} to {after:.2f}" for name in changes.most_lost()[:3]
            for before, after in [changes.concepts[name]]]  # fmt: skip
    click.echo(f"concepts that lost most, IoU over all units: {'; '.join(lost)}")
    for what, (r, count) in changes.correlation.items():
        if r is not None:
            click.echo(f"{what}: r = {r:.2f} of a unit's IoU and how often it is right where it fires, {count} units")
    click.echo(f"{output}: every unit, with the images that excite it")
