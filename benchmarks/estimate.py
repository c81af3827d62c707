"""How well agreement on real images can be told without them: the estimate that `zaq quantize` ends with.

    python benchmarks/estimate.py gather --cifar DIR --shared DIR --images DIR   # goes on where it was
    python benchmarks/estimate.py fit                                            # zaq/report/estimate.json

`gather` quantizes each network at each width by several methods, and writes a row for each: what is known without data
(`zaq.report.estimate`), and how often float and
quantized network give the same answer on real images. These are of training sets: CIFAR's, and for the MobileNet
photographs of COCO, as no image of its own training set is at hand. Agreement needs no label. No image that a table is
scored on is read.
"""

import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.fx import GraphModule

from zaq.compute.random import drawing
from zaq.config.bits import QConfig
from zaq.config.files import write_whole
from zaq.data import ANY, listed, loaded
from zaq.engine.images import IMAGES, images_in, kept, taken
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.methods import METHODS
from zaq.passes.fold import fold
from zaq.report.estimate import CALIBRATION, features_of, ruler, spread, transformed
from zaq.sources import Source, load

RESULTS = Path(__file__).parent / "results" / "estimate"
BITS = ("w4a4", "w3a3", "w8a8", "w6a6", "w5a5", "w2a2")
CHOSEN = ("flagship fast", "rtn", "aciq", "dfq")
NETWORKS = {  # a source, and where its real images are
    "zoo:resnet20_cifar10": "cifar10:{cifar}",
    "{shared}/models/resnet20_cifar10.pt2": "cifar10:{cifar}",
    "{shared}/models/resnet20_cifar100.pt2": "cifar100:{cifar}",
    "{shared}/models/resnet32_cifar10.pt2": "cifar10:{cifar}",
    "{shared}/models/mobilenet_v1_075_imagenet.pt2": "images:{shared}/data/coco128/images",
}
CANDIDATES = (("agreement",), ("sqnr",), ("noise",), ("loss",), ("agreement", "noise"), ("agreement", "sqnr"))
NEWTON, RIDGE = 30, 1e-3
COVERED = 0.9  # the share of cases that the interval is to hold
PLOT = Path(__file__).parents[1] / "docs" / "estimate.png"
Values = NDArray[np.float64]
CROPPED = 320  # pixels a side of COCO's photographs, of which two corners are taken


def real_images(model: Source, data: str, limit: int) -> Tensor:
    """Images (N, C, H, W) of a training set, as the model reads them."""
    if data.startswith("images:"):
        height, width = model.card.input[1:]
        whole = replace(model.card, input=(3, CROPPED, CROPPED), resize=None, crop=None)
        found = torch.cat([x for x, _ in loaded(listed(data, whole, ANY)[: limit // 2], whole, 32)])
        return torch.cat([found[..., :height, :width], found[..., -height:, -width:]])
    samples = listed(data, model.card, ANY, "train")
    return torch.cat([x for x, _ in loaded(samples[:limit], model.card, 100)])


@torch.no_grad()
def answers(gm: GraphModule, images: Tensor) -> Tensor:
    """The class that a network finds in each image, (N,)."""
    return torch.cat([gm(x).argmax(1) for x in images.split(50)])


def ruler_of(model: Source, teacher: GraphModule, path: Path) -> Tensor:
    """What a model's students are held against, drawn once."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"samples": ruler(teacher, model.card).contiguous()}, path)
    return load_file(path)["samples"]


def student_of(model: Source, bits: str, method: str, drawn: Path) -> State:
    """What a method leaves; it takes the images that the flagship has drawn, if it takes any."""
    kind = METHODS[method.partition(" ")[0]]()
    told = {"name": model.name, "sha256": model.sha256, "card": model.card}
    search = getattr(kind, "search", kind.searches)
    task = Task(fold(model.graph)[0], QConfig.parse(bits), model.card, method.partition(" ")[2] or "default", 0, search)
    stages, there = kind.plan(task), (drawn / IMAGES).is_file()
    if kind.name == "flagship":
        drawn.mkdir(parents=True, exist_ok=True)
        if there:
            stages = taken(stages, images_in(drawn, told), kind.name, drawn)
        else:
            stages = kept(stages, lambda content: write_whole(drawn / IMAGES, content), told)
    state = State(task)
    with drawing(0):
        run_stages(stages, state, Journal())
    state.student.settle()
    return state


@click.group(help=__doc__)
def main() -> None:
    """The two steps."""


@main.command()
@click.option("--cifar", required=True, help="The folder that shared/data/unpack.py wrote.")
@click.option("--shared", required=True, help="The folder of reference models and images.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder to keep drawn images in.")
@click.option("--bits", default=",".join(BITS), show_default=True)
@click.option("--methods", default=",".join(CHOSEN), show_default=True)
@click.option("--only", default="", help="Networks whose source holds this text.")
@click.option("--limit", default=256, show_default=True, help="Real images a network.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "rows.csv", show_default=True)
def gather(cifar: str, shared: str, images: Path, bits: str, methods: str, only: str, limit: int, output: Path) -> None:
    """Measure what is not in the table yet."""
    rows = read_rows(output)
    for width, source in itertools.product(bits.split(","), (s for s in NETWORKS if only in s)):
        done = {(r["network"], r["bits"], r["method"]) for r in rows}
        todo = [m for m in methods.split(",") if (source, width, m) not in done]
        if not todo:
            continue
        model, drawn = load(source.format(shared=shared)), images / Path(source).stem.replace(":", "-")
        real = real_images(model, NETWORKS[source].format(shared=shared, cifar=cifar), limit)
        teacher = fold(model.graph)[0]
        wanted, samples = answers(teacher, real), ruler_of(model, teacher, drawn.with_suffix(".safetensors"))
        for method in todo:
            state = student_of(model, width, method, drawn)
            row: dict[str, Any] = {"network": source, "bits": width, "method": method, "classes": model.card.classes}
            row |= {"side": model.card.input[-1]}
            row |= {"real": float((answers(state.student.module, real) == wanted).float().mean()), "images": len(real)}
            rows.append(row | features_of(teacher, state.student.module, samples, state.task.batch))
            click.echo(f"{source} {width} {method}: {100 * rows[-1]['real']:.1f} %")
            write_rows(output, rows)


@main.command()
@click.option("--rows", type=click.Path(path_type=Path), default=RESULTS / "rows.csv", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=CALIBRATION, show_default=True)
@click.option("--plot", type=click.Path(path_type=Path), default=PLOT, show_default=True)
def fit(rows: Path, output: Path, plot: Path) -> None:
    """Fit the line by logistic regression, and judge it by leaving each network out in turn."""
    table = read_rows(rows)
    named, tried = sorted({r["network"] for r in table}), []
    for features in CANDIDATES:
        left_out = np.empty(len(table))
        for network in named:
            mine = np.array([r["network"] == network for r in table])
            left_out[mine] = line(table, features, solved(table, features, ~mine))[mine]
        tried.append((float(np.abs(share(left_out) - real(table)).mean()), features, left_out))
        click.echo(f"{' '.join(features):20} off by {100 * tried[-1][0]:.1f} points")
    error, features, left_out = min(tried, key=lambda one: one[0])
    told = share(left_out)
    margin = quantile(np.abs(told - real(table)) / np.vectorize(spread)(told), COVERED)
    weights = solved(table, features, np.ones(len(table), bool))
    known = {
        "written by": "benchmarks/estimate.py fit",
        "weights": dict(zip(features, weights[1:].tolist(), strict=True)),
        "bias": float(weights[0]),
        "margin": margin,
        "ranges": {n: [min(r[n] for r in table), max(r[n] for r in table)] for n in (*features, "confidence")},
        "classes": [int(min(r["classes"] for r in table)), int(max(r["classes"] for r in table))],
        "side": [int(min(r["side"] for r in table)), int(max(r["side"] for r in table))],
        "error points": round(100 * error, 2),
        "networks": len(named),
        "rows": len(table),
    }
    write_whole(output, (json.dumps(known, indent=1) + "\n").encode())
    draw(table, left_out, margin, plot)
    for network in named:
        off = [abs(s - r["real"]) for s, r in zip(share(left_out), table, strict=True) if r["network"] == network]
        click.echo(f"{network}: off by {100 * np.mean(off):.1f} points without it, {len(off)} rows")
    best = [abs(s - r["real"]) for s, r in zip(share(left_out), table, strict=True) if r["real"] > 0.9]
    click.echo(f"where it is over 90 %: off by {100 * np.mean(best):.1f} points, {len(best)} rows")


def real(table: list[dict[str, Any]]) -> Values:
    """The shares that were counted."""
    return np.array([r["real"] for r in table])


def share(line: Values) -> Values:
    """The logistic."""
    return 1 / (1 + np.exp(-line))


def columns(table: list[dict[str, Any]], features: tuple[str, ...]) -> Values:
    """(rows, 1 + features)"""
    return np.array([[1.0, *(transformed(row)[name] for name in features)] for row in table])


def solved(table: list[dict[str, Any]], features: tuple[str, ...], chosen: NDArray[np.bool_]) -> Values:
    """Bias and weights of a logistic regression of shares, by Newton's method."""
    x, y = columns(table, features)[chosen], real(table)[chosen]
    found = np.zeros(x.shape[1])
    for _ in range(NEWTON):
        p = share(x @ found)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(len(found))
        found = found + np.linalg.solve(curvature, x.T @ (y - p) - RIDGE * found)
    return found


def line(table: list[dict[str, Any]], features: tuple[str, ...], weights: Values) -> Values:
    """What the line says, (rows,)."""
    return columns(table, features) @ weights


def quantile(off: Values, share: float) -> float:
    """What so large a share of new rows is off by no more than (split conformal prediction; Lei et al. 2018, eq. 5)."""
    rank = min(math.ceil(share * (len(off) + 1)), len(off))
    return float(np.sort(off)[rank - 1])


def draw(table: list[dict[str, Any]], left_out: Values, margin: float, path: Path) -> None:
    """What was counted over what was told without the network, with the interval."""
    figure = Figure(figsize=(6, 5))
    axes = figure.add_subplot()
    told = np.linspace(0, 1, 200)
    off = margin * np.vectorize(spread)(told)
    axes.fill_between(100 * told, 100 * np.clip(told - off, 0, 1), 100 * np.clip(told + off, 0, 1), alpha=0.15)
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8)
    for network in dict.fromkeys(r["network"] for r in table):
        mine = np.array([r["network"] == network for r in table])
        axes.scatter(100 * share(left_out)[mine], 100 * real(table)[mine], s=18, label=Path(network).stem)
    axes.set_xlabel("estimated without data, by the other networks, %")
    axes.set_ylabel("counted on real images, %")
    axes.set_title("same answer as the float network", fontsize=10)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight", metadata={"Software": None})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The table, numbers as numbers; nothing where there is none yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return [
            {k: v if k in ("network", "bits", "method") else float(v) for k, v in r.items()}
            for r in csv.DictReader(stream)
        ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        ",".join(rows[0]),
        *(",".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in r.values()) for r in rows),
    ]
    write_whole(path, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
