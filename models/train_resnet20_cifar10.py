"""Train the shipped reference model: python models/train_resnet20_cifar10.py DATA [--out models]

DATA holds `cifar-10-batches-bin` (the official binary layout). Writes `resnet20_cifar10.safetensors` and its card.
The recipe is made for two CPU cores: 24x24 crops first (half the cost), whole images after, one learning-rate cycle.
The test set is read once, after the last step; no epoch is chosen. A killed run goes on from its last epoch.
"""

import json
import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.sources.zoo import resnet20

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAME = "resnet20_cifar10"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
BATCH, PEAK_LR, WARM_UP, MOMENTUM, WEIGHT_DECAY = 128, 0.2, 0.15, 0.9, 5e-4
CROP_FIRST, PAD = 24, 4  # pixels


def read(data: Path, files: list[str]) -> tuple[Tensor, Tensor]:  # (N, 3, 32, 32) normalised, (N,)
    raw = np.concatenate([np.fromfile(data / "cifar-10-batches-bin" / f, np.uint8).reshape(-1, 3073) for f in files])
    images = torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32).copy()).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images - mean) / std, torch.from_numpy(raw[:, 0].astype(np.int64))


def augment(padded: Tensor, index: Tensor, size: int) -> Tensor:
    """Random crops of `size` pixels and horizontal flips, of the images `index` of a zero-padded set."""
    offsets = torch.randint(0, padded.shape[-1] - size + 1, (2, len(index), 1))
    span = torch.arange(size)
    columns = offsets[1] + span
    columns = torch.where(torch.rand(len(index), 1) < 0.5, columns, columns.flip(1))
    rows = (offsets[0] + span)[:, None, :, None]
    channels = torch.arange(3)[None, :, None, None]
    return padded[index[:, None, None, None], channels, rows, columns[:, None, None, :]]


def learning_rate(progress: float) -> float:
    """Linear warm-up to the peak, cosine to zero; `progress` runs from 0 to 1 over all steps."""
    if progress < WARM_UP:
        return PEAK_LR * progress / WARM_UP
    return PEAK_LR * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return 100 * float(torch.stack(hits).sum()) / len(labels)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent, help="Folder for the weights.")
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("train_resnet20.pt"), help="Checkpoint to go on from."
)
@click.option("--epochs", type=(int, int), default=(20, 22), help="Epochs on crops, then on whole images.")
@click.option("--seed", default=0)
def main(data: Path, out: Path, work: Path, epochs: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    images, labels = read(data, [f"data_batch_{i}.bin" for i in range(1, 6)])
    padded = F.pad(images, (PAD,) * 4)
    model = resnet20().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True)
    start, seconds, steps = 0, 0.0, len(images) // BATCH
    if work.exists():
        saved = torch.load(work, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        start, seconds = saved["epoch"], saved["seconds"]
    for epoch in range(start, sum(epochs)):
        began, total = time.monotonic(), 0.0
        model.train()
        for step, index in enumerate(torch.randperm(len(images))[: steps * BATCH].split(BATCH)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate((epoch + step / steps) / sum(epochs))
            batch = augment(padded, index, CROP_FIRST if epoch < epochs[0] else 32)
            loss = F.cross_entropy(model(batch.contiguous(memory_format=torch.channels_last)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        seconds += time.monotonic() - began
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        torch.save(saved | {"epoch": epoch + 1, "seconds": seconds}, work)
        click.echo(f"epoch {epoch + 1}/{sum(epochs)}  loss {total / steps:.4f}  {seconds / 60:.1f} min")
    top1 = accuracy(model, *read(data, ["test_batch.bin"]))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / f"{NAME}.safetensors")
    card = {
        "input": [3, 32, 32],
        "task": "classification",
        "classes": 10,
        "class_names": CLASSES,
        "mean": MEAN,
        "std": STD,
        "arch": "resnet20",
        "top1": round(top1, 2),
        "data": "CIFAR-10, 50,000 training images; top1 on the 10,000 test images, read once after the last step",
        "recipe": f"SGD nesterov, momentum {MOMENTUM}, batch {BATCH}, peak lr {PEAK_LR}, one cycle (warm-up {WARM_UP}, "
        f"cosine), weight decay {WEIGHT_DECAY} on matrices; {epochs[0]} epochs on {CROP_FIRST}x{CROP_FIRST} crops, "
        f"{epochs[1]} on 32x32; crops from {PAD}-pixel padding, flips; seed {seed}",
        "minutes": round(seconds / 60, 1),
        "script": Path(__file__).name,
    }
    (out / f"{NAME}.json").write_text(json.dumps(card, indent=1) + "\n")
    click.echo(f"top-1 {top1:.2f} %")


if __name__ == "__main__":
    main()
