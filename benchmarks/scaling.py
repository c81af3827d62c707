"""How cost grows: time and peak memory of `zaq quantize` over depth, width, pixels, images, batch and processes.

    python benchmarks/scaling.py                    # all that `fast` has; rows that are there already are not run again
    python benchmarks/scaling.py --only depth       # one of them; --effort default, or best, for longer runs
    python benchmarks/scaling.py --only networks    # whole networks at 224 pixels, two of them from ../shared

Every run is `zaq quantize` in a process of its own on one thread, w4a4 where nothing else is said, of CIFAR's residual
network with random weights (6n + 2 layers; its batch norms know the statistics of a little noise). One thing grows, all
else stays: 20 layers, 16 channels, 32 pixels, the images that the effort draws, the batch that zaq chooses. CPU seconds
are those of the process and its children, from the command to the verified file; the peak is what the system says
of the largest process. An exponent is the slope of a line through log(cost) over log(what grows).

`results/scaling/results.md` is the table, `results.csv` holds the same, `results.svg` draws it.
"""

import argparse
import csv
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zaq.benchmark.cells import version
from zaq.run import write_file

if TYPE_CHECKING:
    from torch import nn

OUT = Path(__file__).parent / "results" / "scaling"
SHARED = Path(__file__).parents[2] / "shared"
FACTORY = "scaling:residual"  # this file, found because the runs are started in its folder
NOISE = 64  # images of it, for the statistics of batch norms
SIDE = 32  # pixels, where nothing else is said


def residual(depth: int = 20, width: int = 16, pixels: int = SIDE) -> "nn.Module":
    """CIFAR's residual network of 6n + 2 layers, `width` channels in its first third; input (N, 3, pixels, pixels)."""
    import torch
    from torch import nn

    from zaq.sources.zoo import ResNet

    model = ResNet((depth - 2) // 6, classes=10, width=width)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of what it sees
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(NOISE, 3, pixels, pixels))
    return model.eval()


@dataclass(frozen=True)
class Cell:
    """One run: what grows and how far, and the command. `batch` None: zaq's own."""

    axis: str
    at: str
    command: tuple[str, ...]
    batch: int | None = None


@dataclass
class Row:
    """What a run cost."""

    axis: str
    at: str
    effort: str
    minutes: float = math.nan
    cpu_seconds: float = math.nan
    peak_mb: int = 0
    failure: str = ""
    version: str = field(default_factory=version)


def toy(axis: str, at: int, *more: str, batch: int | None = None, **network: int) -> Cell:
    pixels = network.get("pixels", SIDE)
    source = (FACTORY, "--kwargs", json.dumps(network), "--input-shape", f"3,{pixels},{pixels}")
    return Cell(axis, str(at), (*source, "--normalize", "cifar10", *more), batch)


def whole(at: str, source: str, *more: str) -> Cell:
    return Cell("networks", at, (source, *more))


def cells() -> list[Cell]:
    """All of them, cheap ones first."""
    random = ("--random-weights", "--bits", "w8a8")
    mobilenet = str(SHARED / "models" / "mobilenet_v1_075_imagenet.pt2")
    lite = os.environ.get("EFFICIENTNET_LITE0", "efficientnet_lite0.pt2")  # what ../shared/tools makes
    return [
        *(toy("depth", d, depth=d) for d in (20, 32, 44, 56, 110)),
        *(toy("width", w, width=w) for w in (8, 16, 32, 64)),
        *(toy("images", n, "-s", f"images={n}") for n in (64, 128, 256, 512, 1024)),
        *(toy("batch", n, batch=n) for n in (8, 16, 32, 64)),
        *(toy("processes", n, "--devices", str(n)) for n in (1, 2)),
        *(toy("pixels", p, pixels=p, width=8) for p in (32, 64, 96, 160, 224)),
        whole("MobileNetV1-0.75 w8a8", mobilenet, "--bits", "w8a8"),
        whole("MobileNetV1-0.75 w4a4", mobilenet),
        whole("MobileNetV1-0.75 w4a4, --memory 200M", mobilenet, "--memory", "200M"),
        whole("EfficientNet-Lite0 w8a8", lite, "--bits", "w8a8"),
        whole("EfficientNet-Lite0 w4a8", lite, "--bits", "w4a8"),
        whole("ResNet-50 w8a8", "timm:resnet50", *random),
        whole("ViT-B/16 w8a8", "timm:vit_base_patch16_224", *random),
    ]


def run(cell: Cell, effort: str, log: Path) -> Row:
    """A cell in a process of its own, what it says in a file."""
    row = Row(cell.axis, cell.at, effort)
    with tempfile.TemporaryDirectory() as folder:
        command = ["quantize", *cell.command, "--effort", effort, "--threads", "1", "-o", str(Path(folder) / "run")]
        started = time.monotonic()
        with log.open("w") as file:
            call = [sys.executable, __file__, "--batch", str(cell.batch or 0), "--", *command]
            child = subprocess.Popen(call, stdout=file, stderr=file, cwd=Path(__file__).parent)
            _, status, used = os.wait4(child.pid, 0)
    row.minutes = round((time.monotonic() - started) / 60, 2)
    row.cpu_seconds = round(used.ru_utime + used.ru_stime, 1)
    row.peak_mb = used.ru_maxrss // 1024
    code = child.returncode = os.waitstatus_to_exitcode(status)
    if code:
        row.failure = f"ended with {code}: {log.read_text().strip().splitlines()[-1:]}"
    return row


def here(batch: int, command: list[str]) -> None:
    """What the process of a cell does: the command, with a batch of so many images where one is said."""
    import zaq.engine.task
    from zaq.cli import main

    if batch:
        zaq.engine.task.PIXELS_A_BATCH = batch * SIDE**2
    main(command)


def read() -> list[Row]:
    path = OUT / "results.csv"
    if not path.is_file():
        return []
    kinds = {"minutes": float, "cpu_seconds": float, "peak_mb": int}
    with path.open(newline="") as file:
        return [Row(**{k: kinds.get(k, str)(v) for k, v in line.items()}) for line in csv.DictReader(file)]


def write(rows: list[Row]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(map(asdict, rows))
    write_file(OUT / "results.csv", text.getvalue())
    write_file(OUT / "results.md", markdown(rows))
    draw(rows)


def grown(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of each effort and each thing that grows, in its order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.axis != "networks" and not row.failure:
            found.setdefault((row.effort, row.axis), []).append(row)
    return {key: sorted(group, key=lambda r: int(r.at)) for key, group in found.items()}


def exponent(group: list[Row], cost: str) -> float:
    """The slope of log(cost) over log(what grows), by least squares."""
    x, y = (np.log([float(getattr(r, name)) for r in group]) for name in ("at", cost))
    return float(np.polyfit(x, y, 1)[0]) if len(group) > 1 else math.nan


def markdown(rows: list[Row]) -> str:
    """Exponents first, then every run."""
    lines = ["# How cost grows", "", "`python benchmarks/scaling.py` says how.", ""]
    lines += [
        "| effort | what grows | from, to | CPU seconds grow by the power | peak memory |",
        "|---|---|---|---|---|",
    ]
    for (effort, axis), group in grown(rows).items():
        powers = (f"{exponent(group, cost):.2f}" for cost in ("cpu_seconds", "peak_mb"))
        lines.append(f"| {effort} | {axis} | {group[0].at}, {group[-1].at} | " + " | ".join(powers) + " |")
    lines += ["", "| effort | | | minutes | CPU s | peak, MB | made by |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        cost = r.failure or f"{r.minutes:.2f} | {r.cpu_seconds:.0f} | {r.peak_mb}"
        lines.append(f"| {r.effort} | {r.axis} | {r.at} | {cost} | {r.version} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row]) -> None:
    """CPU seconds and peak memory over each thing that grows, both axes by powers."""
    from matplotlib.figure import Figure

    groups = grown(rows)
    axes = list(dict.fromkeys(axis for _, axis in groups))
    if not axes:
        return
    figure = Figure(figsize=(2.4 * len(axes), 4.6), layout="constrained")
    grid = figure.subplots(2, len(axes), squeeze=False, sharey="row")
    for (effort, axis), group in groups.items():
        x = [int(r.at) for r in group]
        for line, (cost, unit) in enumerate((("cpu_seconds", "CPU seconds"), ("peak_mb", "peak, MB"))):
            place = grid[line][axes.index(axis)]
            place.loglog(x, [getattr(r, cost) for r in group], "o-", label=f"{effort}: {exponent(group, cost):.2f}")
            place.set_xticks(x, list(map(str, x)), fontsize=7)
            place.minorticks_off()
            place.legend(fontsize=7, title="power", title_fontsize=7)
            place.set_xlabel(axis if line else "")
            grid[line][0].set_ylabel(unit)
    figure.savefig(OUT / "results.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="one of what grows, or `networks`; repeatable")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch is not None:
        return here(arguments.batch, arguments.command)
    rows = read()
    for cell in cells():
        there = any((r.axis, r.at, r.effort) == (cell.axis, cell.at, arguments.effort) for r in rows if not r.failure)
        if there or (arguments.only and cell.axis not in arguments.only):
            continue
        row = run(
            cell, arguments.effort, Path(tempfile.gettempdir()) / f"scaling_{cell.axis}_{cell.at.split('/')[0]}.log"
        )
        rows = [r for r in rows if (r.axis, r.at, r.effort) != (row.axis, row.at, row.effort)] + [row]
        print(row, flush=True)
        write(rows)


if __name__ == "__main__":
    main()
