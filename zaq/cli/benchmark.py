"""`zaq benchmark`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zaq.cli.options import PATH, Number, method_of, progress
from zaq.errors import UserError

if TYPE_CHECKING:
    from zaq.benchmark.measure import Meter
    from zaq.benchmark.plan import Cell

__all__ = ["benchmark"]

PLANS = (".yaml", ".yml")


@click.command()
@click.argument("sources", nargs=-1, metavar="MODEL... | PLAN.yaml")
@click.option("--data", help="Labelled images to measure on: cifar10:DIR, csv:DIR, ...")
@click.option("--task", help="What they are measured by, as for zaq eval; the model's card says it by default.")
@click.option("--decode", help="A detector's decoding constants, as for zaq eval.")
@click.option("--bits", help="As w8a8,w4a4; w4a4 by default.")
@click.option("--methods", help="As rtn,zaq,zaq[alpha=0,relation=gram]; zaq by default.")
@click.option("--placements", help="integer, gdfq, brecq, or some of them with commas.")
@click.option("--weights", help="Grids of weights, as for zaq quantize.")
@click.option("--first-last", help="Bits of the first and the last layer, as for zaq quantize.")
@click.option("--seeds", type=click.IntRange(1), help="How many: seeds 0 to N - 1; 1 by default.")
@click.option("--effort", help="fast, default or best.")
@click.option("--limit", type=click.IntRange(1), help="Measure on the first images only.")
@click.option("--shard", help="I/N: only every N-th cell, from the I-th, for job arrays.")
@click.option("--collect", is_flag=True, help="Run nothing; gather what is finished in the folder into its tables.")
@click.option("--retry", is_flag=True, help="Run cells that failed again.")
@click.option(
    "--timeout",
    type=Number(0, 30_000, min_open=True),  # a system waits no more milliseconds at once than 31 bits count
    help="Minutes after which a cell is stopped, and failed.",
)
@click.option("--keep", is_flag=True, help="Keep every run's files, not its report alone.")
@click.option(
    "--slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="Run the cells as jobs of SLURM: partition=gpu, timeout_min=60, gpus_per_node=1, ...; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="List the cells, write nothing.")
@click.option(
    "-o", "--output", type=PATH, required=True, help="Folder for the results; finished cells in it are not run again."
)
def benchmark(
    sources: tuple[str, ...],
    output: Path,
    shard: str | None,
    collect: bool,
    retry: bool,
    timeout: float | None,
    keep: bool,
    slurm: tuple[str, ...],
    dry_run: bool,
    **block: Any,
) -> None:
    """Quantize MODELs by every method at every width, measure each file, and make a table and a page of it.

    Cells are what a PLAN.yaml says, or the flags. Several processes may share a folder; a killed one goes on where it
    was.
    """
    from zaq.config.names import kind_of, missing

    for source in sources:
        if Path(source).suffix.lower() not in PLANS:
            kind_of(source)
        elif not Path(source).exists():
            raise UserError(missing(Path(source)))

    from zaq.benchmark.cells import Folder
    from zaq.benchmark.cluster import Cluster
    from zaq.benchmark.measure import Meter
    from zaq.benchmark.plan import shard as shard_of
    from zaq.benchmark.runner import run_cells, write_tables

    if collect:
        found = Folder.open(output)
        click.echo(f"{write_tables(found)} finished cells in {output}/index.html, results.md and results.csv.")
        return
    cluster = Cluster.parse(slurm) if slurm else None
    meter = Meter(output)
    cells, plan = _cells(sources, {k: v for k, v in block.items() if v is not None}, meter)
    cells = shard_of(cells, shard) if shard else cells
    if dry_run:
        click.echo("\n".join([*(cell.id for cell in cells), f"{len(cells)} cells, into {output}/cells/"]))
        return
    meter.check_data(cells)
    folder, bars = Folder.create(output), progress("info" if sys.stderr.isatty() else "warning")  # rows are told below
    folder.describe(f"zaq {shlex.join(sys.argv[1:])}", plan)
    say = bars.say if sys.stderr.isatty() else click.echo  # above the bars, where there are any
    run_cells(
        folder,
        cells,
        meter,
        retry=retry,
        timeout=timeout and 60 * timeout,
        keep=keep,
        progress=bars,
        say=say,
        cluster=cluster,
    )
    left, failed = len(folder.open_cells(cells)), sum(bool(r["error"]) for r in folder.results(cells))
    told = [
        f"{len(cells) - left} of {len(cells)} cells finished",
        f"{failed} failed (--retry runs them again)" if failed else "",
        f"{left} held by other processes" if left else "",
    ]
    click.echo(f"{', '.join(filter(None, told))}: {output}/index.html, results.md and results.csv.")


def _cells(sources: tuple[str, ...], block: dict[str, Any], meter: "Meter") -> "tuple[list[Cell], str | None]":
    """The cells, every method of which could be called, and the text of the plan."""
    from zaq.benchmark.plan import cells_of, read_plan
    from zaq.config.bounds import plain_text

    plans = [Path(s) for s in sources if Path(s).suffix.lower() in PLANS]
    if not plans:
        cells = cells_of({"models": list(sources), **block}, Path.cwd(), "zaq benchmark", meter.identify)
    elif len(sources) > 1 or set(block) - {"limit"}:
        beside = ", ".join(
            [*(s for s in sources if Path(s) != plans[0]), *(f"--{k.replace('_', '-')}" for k in block if k != "limit")]
        )
        raise UserError(f"{plans[0]}: a plan says what runs; {beside} beside it cannot. Write it into the plan.")
    else:
        cells = read_plan(plans[0], meter.identify, block.get("limit"))
    for method, settings in dict.fromkeys((c.method, c.settings) for c in cells):
        method_of(method, settings)
    return cells, plain_text(plans[0]) if plans else None
