"""How well agreement on real images can be told without them: the estimate that `zaq quantize` ends with.

    python benchmarks/estimate.py gather --cifar DIR --shared DIR --images DIR  # rows that are there are not measured again
    python benchmarks/estimate.py fit                                 # zaq/report/estimate.json, and what it is worth

`gather` quantizes each network at each width by `flagship --effort fast`, `rtn`, `dfq` and `aciq`, and writes a row for
each: what is known without data (`zaq.report.estimate.features_of`), and how often float and quantized network give the
same answer on real images. These are of training sets: CIFAR's, and for the MobileNet crops of the photographs of
COCO, as no image of its own training set is at hand. Agreement needs no label. No image that a table is scored on is
read.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.config.files import write_whole
from zaq.data import ANY, listed, loaded
from zaq.engine.images import IMAGES
from zaq.methods import METHODS
from zaq.methods.flagship import Flagship
from zaq.report.estimate import features_of
from zaq.sources import Source, load

RESULTS = Path(__file__).parent / "results" / "estimate"
BITS = ("w4a4", "w3a3", "w8a8", "w6a6", "w5a5", "w2a2")
OTHERS = ("rtn", "dfq", "aciq")
NETWORKS = {  # a source, and where its real images are
    "zoo:resnet20_cifar10": "cifar10:{cifar}",
    "{shared}/models/resnet20_cifar10.pt2": "cifar10:{cifar}",
    "{shared}/models/resnet20_cifar100.pt2": "cifar100:{cifar}",
    "{shared}/models/resnet32_cifar10.pt2": "cifar10:{cifar}",
    "{shared}/models/mobilenet_v1_075_imagenet.pt2": "images:{shared}/data/coco128/images",
}
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


def students(model: Source, bits: str, effort: str, drawn: Path) -> Iterator[tuple[str, Any]]:
    """By method: what `quantize_graph` makes of a model at these bits, the flagship first. Images are drawn once."""
    told: dict[str, Any] = {"card": model.card, "source": {"name": model.name, "sha256": model.sha256}}
    drawn.mkdir(parents=True, exist_ok=True)
    qconfig, there = QConfig.parse(bits), (drawn / IMAGES).is_file()
    kept = {"samples": drawn} if there else {"keep": lambda content: write_whole(drawn / IMAGES, content)}
    yield f"flagship {effort}", quantize_graph(model.graph, qconfig, Flagship(), effort=effort, **told, **kept)
    for name in OTHERS:
        yield name, quantize_graph(model.graph, qconfig, METHODS[name](), **told)


@click.group(help=__doc__)
def main() -> None:
    """The two steps."""


@main.command()
@click.option("--cifar", required=True, help="The folder that shared/data/unpack.py wrote.")
@click.option("--shared", required=True, help="The folder of reference models and images.")
@click.option("--bits", default=",".join(BITS), show_default=True)
@click.option("--effort", default="fast", show_default=True)
@click.option("--only", default="", help="Networks whose source holds this text.")
@click.option("--limit", default=500, show_default=True, help="Real images a network.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder to keep drawn images in.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "rows.csv", show_default=True)
def gather(cifar: str, shared: str, bits: str, effort: str, only: str, limit: int, images: Path, output: Path) -> None:
    """Measure what is not in the table yet."""
    rows = read_rows(output)
    for width in bits.split(","):
        for source in (s for s in NETWORKS if only in s):
            if (source, width, f"flagship {effort}") in {(r["network"], r["bits"], r["method"]) for r in rows}:
                continue
            data = NETWORKS[source].format(shared=shared, cifar=cifar)
            rows += measured(load(source.format(shared=shared)), source, width, effort, data, limit, images)
            write_rows(output, rows)


def measured(
    model: Source, source: str, bits: str, effort: str, data: str, limit: int, drawn: Path
) -> Iterator[dict[str, Any]]:
    """A row for each method."""
    images = real_images(model, data, limit)
    wanted, ours = answers(model.graph, images), None
    for method, made in students(model, bits, effort, drawn / Path(source).stem.replace(":", "-")):
        ours = ours or made  # the flagship's, which has samples held out
        agreement = float((answers(made.module, images) == wanted).float().mean())
        click.echo(f"{source} {bits} {method}: {100 * agreement:.1f} %")
        row = {"network": source, "bits": bits, "method": method, "classes": model.card.classes}
        known = features_of(ours.teacher, made.module, ours.state.samples, ours.task.batch)
        yield row | {"agreement": agreement, "images": len(images)} | known


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The table, numbers as numbers; nothing where there is none yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return [{k: v if k in ("network", "bits", "method") else float(v) for k, v in r.items()} for r in csv.DictReader(stream)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows[0]), *(",".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in r.values()) for r in rows)]
    write_whole(path, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
