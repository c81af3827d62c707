"""CycleGAN as a network to quantize (Zhu et al. 2017, arXiv 1703.10593): two small generators learn to turn one class
of CIFAR-10 into another and back, and the first of them is quantized without any of these images.

    python benchmarks/cyclegan.py --data cifar10:DIR                    # writes results/cyclegan
    python benchmarks/cyclegan.py --data cifar10:DIR -o horse_deer.pt2  # and the generator, with its card beside it

How like the float generator's images the integer file's are is told on test images; so is what comes back by the other
generator, which stays in float.
"""

import json
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

import zaq
from zaq import Card
from zaq.cli.options import progress
from zaq.data import batches
from zaq.quantized import Learned
from zaq.verify.machine import facts

CARD = Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)  # pixels from -1 to 1, as tanh draws them
KINDS = {"horse": 7, "deer": 4}  # their labels in CIFAR-10
CYCLE, IDENTITY = 10.0, 5.0  # weights of the paper: lambda, and half of it
RATE, BETAS, POOL = 2e-4, (0.5, 0.999), 50
BITS = ("w8a8", "w6a6", "w4a8")
LOOKED = 100  # of the last steps' losses the mean is told
SHOWN, ZOOM, MARGIN = 6, 2, 56  # of the sheet: images a row, pixels a pixel, and room for the names of the rows
RESULTS = Path(__file__).parent / "results" / "cyclegan"


class Block(nn.Module):
    """A residual block of the generator."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = (nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width))
        other = (nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width))
        self.body = nn.Sequential(*half, nn.ReLU(), *other)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


def generator(width: int = 16, blocks: int = 3) -> nn.Sequential:
    """The paper's ResNet generator, (N, 3, H, W) -> the same, a quarter as wide and with 3 blocks of its 6 or 9."""

    def normed(layer: nn.Module, channels: int) -> list[nn.Module]:
        return [layer, nn.InstanceNorm2d(channels), nn.ReLU()]

    return _begun(
        nn.Sequential(
            nn.ReflectionPad2d(3),
            *normed(nn.Conv2d(3, width, 7), width),
            *normed(nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width),
            *normed(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), 4 * width),
            *(Block(4 * width) for _ in range(blocks)),
            *normed(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1), 2 * width),
            *normed(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), width),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, 3, 7),
            nn.Tanh(),
        )
    )


def patches(width: int = 32) -> nn.Sequential:
    """A PatchGAN: a verdict on every patch of 16 x 16 pixels, half of an image's side (the paper's 70 of 256)."""
    return _begun(
        nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 1, 1),
            nn.InstanceNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, 1, 1),
        )
    )


def _begun(network: nn.Sequential) -> nn.Sequential:
    """With weights of deviation 0.02, as the paper's begin."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network


class Pool:
    """Generated images that a discriminator is shown again, so that it does not forget what it was shown before."""

    def __init__(self, size: int = POOL) -> None:
        self.size, self.images = size, list[Tensor]()

    def exchange(self, images: Tensor) -> Tensor:
        """For each new image (n, C, H, W), once the pool is full: by even chance itself, or an old one, whose place it
        takes.
        """
        found = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image)
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                self.images[place], image = image, self.images[place]
            found.append(image)
        return torch.stack(found)


def fooled(verdicts: Tensor) -> Tensor:
    """What a generator goes down: E (D(G(x)) - 1)^2 (LSGAN)."""
    return (verdicts - 1).square().mean()


def told_apart(of_real: Tensor, of_drawn: Tensor) -> Tensor:
    """What a discriminator goes down, halved: (E (D(y) - 1)^2 + E D(G(x))^2) / 2."""
    return ((of_real - 1).square().mean() + of_drawn.square().mean()) / 2


class CycleGAN:
    """Both generators and discriminators, and a step of their training; x is of the first kind, y of the second."""

    def __init__(self, steps: int) -> None:
        self.there, self.back, self.of_x, self.of_y = generator(), generator(), patches(), patches()
        self.pool_x, self.pool_y = Pool(), Pool()
        pairs = (self.there, self.back), (self.of_x, self.of_y)
        self.up, self.down = (
            torch.optim.Adam([p for net in pair for p in net.parameters()], RATE, BETAS) for pair in pairs
        )
        self.rates = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1.0, 2 - 2 * i / steps)) for o in (self.up, self.down)
        ]  # constant, then falling on a line

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """One of the generators, then one of the discriminators, on batches (n, 3, H, W). Returns the losses."""
        to_y, to_x = self.there(x), self.back(y)
        cycle = F.l1_loss(self.back(to_y), x) + F.l1_loss(self.there(to_x), y)
        identity = F.l1_loss(self.there(y), y) + F.l1_loss(self.back(x), x)
        fooling = fooled(self.of_y(to_y)) + fooled(self.of_x(to_x))
        self._go(self.up, fooling + CYCLE * cycle + IDENTITY * identity)
        apart = told_apart(self.of_x(x), self.of_x(self.pool_x.exchange(to_x)))
        apart = apart + told_apart(self.of_y(y), self.of_y(self.pool_y.exchange(to_y)))
        self._go(self.down, apart)
        for rate in self.rates:
            rate.step()
        found = {"fooling": fooling, "cycle": cycle, "identity": identity, "told_apart": apart}
        return {name: float(value.detach()) for name, value in found.items()}

    def _go(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        for p in (*self.up.param_groups[0]["params"], *self.down.param_groups[0]["params"]):
            p.grad = None
        loss.backward()
        optimizer.step()


def train(x: Tensor, y: Tensor, steps: int, batch: int) -> tuple[CycleGAN, dict[str, float]]:
    """Both ways learned, mirrored images at random; and the mean of the last losses."""
    gan, rows = CycleGAN(steps), list[dict[str, float]]()
    for _ in progress().track("training", steps):
        chosen = (of[torch.randint(len(of), (batch,))] for of in (x, y))
        rows.append(gan.step(*(some.flip(3) if torch.rand(()) < 0.5 else some for some in chosen)))
    last = rows[-LOOKED:]
    return gan, {name: sum(row[name] for row in last) / len(last) for name in last[0]}


def kind(data: str, label: int, split: str) -> Tensor:
    """All images of a class, (N, 3, 32, 32), pixels from -1 to 1."""
    return torch.cat([images[labels == label] for images, labels in batches(data, CARD, 1000, split=split)])


@dataclass(frozen=True)
class Row:
    """How like the float generator's images those of the integer file are, and what comes back from the student's."""

    bits: str
    psnr: float  # dB
    ssim: float
    cycle: float  # mean |F(Q(x)) - x| over pixels from -1 to 1
    kilobytes: float  # of weights, packed


@torch.no_grad()
def measured(made: Learned, bits: str, x: Tensor, back: nn.Module) -> Row:
    """A row, on test images."""
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(x):
            Image.fromarray(pixels(image)).save(Path(folder) / f"{i:04}.png")
        like = made.evaluate(f"images:{folder}", task="image").fields()
    cycle = float((back(made.module(x)) - x).abs().mean())
    return Row(bits, like["psnr"], like["ssim"], cycle, made.report["weight_bytes"] / 1024)


def pixels(image: Tensor) -> Any:
    """An image (3, H, W) from -1 to 1 as bytes (H, W, 3)."""
    return np.ascontiguousarray(((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def sheet(rows: dict[str, Tensor], path: Path) -> None:
    """Rows of images (n, 3, H, W), a name before each."""
    height, width = next(iter(rows.values())).shape[2:]
    page = Image.new("RGB", (MARGIN + ZOOM * width * SHOWN, ZOOM * height * len(rows)), "white")
    write = ImageDraw.Draw(page)
    for line, (name, images) in enumerate(rows.items()):
        write.text((4, ZOOM * height * line + ZOOM * height // 2 - 6), name, fill="black")
        for column, image in enumerate(images[:SHOWN]):
            tile = Image.fromarray(pixels(image)).resize((ZOOM * width, ZOOM * height), Image.Resampling.NEAREST)
            page.paste(tile, (MARGIN + ZOOM * width * column, ZOOM * height * line))
    page.save(path, optimize=True)


def keep(network: nn.Module, path: Path) -> None:
    """The generator as a .pt2 for `zaq quantize`, with its card beside it."""
    batch = {0: torch.export.Dim.AUTO}
    torch.export.save(torch.export.export(network, (torch.zeros(2, *CARD.input),), dynamic_shapes=(batch,)), path)
    path.with_suffix(".json").write_text(json.dumps(CARD.to_dict()))


def commit() -> str:
    said = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parents[2]
    )
    return said.stdout.strip()


@click.command(help=__doc__)
@click.option("--data", required=True, help="cifar10:DIR")
@click.option("--steps", type=click.IntRange(1), default=1600, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--effort", default="fast", show_default=True, help="Of zaq.quantize.")
@click.option("--images", type=click.IntRange(SHOWN), default=200, show_default=True, help="Test images looked at.")
@click.option("--seed", default=0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Folder of results.json, sheet.png.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .pt2 of the generator.")
def main(
    data: str, steps: int, batch: int, effort: str, images: int, seed: int, results: Path, output: Path | None
) -> None:
    torch.manual_seed(seed)
    began, names = time.monotonic(), list(KINDS)
    x, y = (kind(data, KINDS[name], "train") for name in names)
    gan, losses = train(x, y, steps, batch)
    taken = {"training": time.monotonic() - began}
    there, back, x = gan.there.eval(), gan.back.eval(), kind(data, KINDS[names[0]], "test")[:images]
    if output is not None:
        keep(there, output)
    with torch.no_grad():
        shown, rows = {names[0]: x[:SHOWN], "float": there(x[:SHOWN])}, list[Row]()
        floats = float((back(there(x)) - x).abs().mean())
    for bits in BITS:
        began = time.monotonic()
        made = zaq.quantize(there, x[:1], bits, card=CARD, effort=effort, seed=seed, progress=progress())
        taken[bits] = time.monotonic() - began
        rows.append(measured(made, bits, x, back))
        click.echo(f"{rows[-1]}; float cycle {floats:.4f}")
        with torch.no_grad():
            shown[bits] = made.module(x[:SHOWN])
    results.mkdir(parents=True, exist_ok=True)
    sheet(shown, results / "sheet.png")
    said = {
        "zaq": commit(), "torch": torch.__version__,
        "machine": facts()["processor"], "threads": torch.get_num_threads(),
        "from": names[0], "to": names[1], "steps": steps, "batch": batch, "seed": seed, "effort": effort,
        "test_images": len(x), "seconds": {name: round(s) for name, s in taken.items()},
        "last_losses": losses, "float_cycle": floats, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    (results / "results.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
