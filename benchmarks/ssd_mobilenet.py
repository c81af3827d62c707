"""The ZAQ paper's detector, SSD on MobileNetV2, out of torchvision's parts: its network half as a .pt2 file, its
default boxes in the card beside it, for `zaq quantize` and `zaq eval --task detection`.

    python benchmarks/ssd_mobilenet.py ssd.pt2 --side 320 --classes 20

No weights of it were to be had: these are random, with batch norms that have seen noise. What it finds means nothing,
but how much of that is left after quantization does: `--labels DIR` writes what the float network finds in DIR/images
as its labels.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zaq.sources.operators import define_missing_operators

define_missing_operators()  # before torchvision is imported

from torchvision.models import mobilenet_v2  # noqa: E402
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator  # noqa: E402
from torchvision.models.detection.ssdlite import SSDLiteHead  # noqa: E402
from torchvision.ops.misc import Conv2dNormActivation  # noqa: E402

MEAN = STD = (0.5, 0.5, 0.5)
LABELLED, SURE = 5, 0.3  # boxes an image that `--labels` keeps, and their least overlap for not being the same


class SSD(nn.Module):
    """SSDLite (Sandler et al. 2018): images (N, 3, H, W) to `bbox_regression` (N, boxes, 4) and `cls_logits` (N, boxes,
    1 + K).
    """

    def __init__(
        self,
        classes: int,
        width: float = 1.0,
        blocks: list[list[int]] | None = None,
        depths: tuple[int, ...] = (512, 256, 256, 128),
    ) -> None:
        """blocks: rows of MobileNetV2's table (None: the paper's); depths: channels of the maps behind it."""
        super().__init__()
        features = mobilenet_v2(width_mult=width, inverted_residual_setting=blocks).features
        last = max(i for i, block in enumerate(features) if getattr(block, "stride", 1) == 2)  # to a 32nd of the side
        expansion, *rest = features[last].conv  # which still is at a 16th: the first map
        self.stages = nn.ModuleList(
            [nn.Sequential(*features[:last], expansion), nn.Sequential(*rest, *features[last + 1 :])]
        )
        channels = [expansion[0].out_channels, features[-1][0].out_channels]
        for depth in (max(int(d * width), 16) for d in depths):
            self.stages.append(_extra(channels[-1], depth))
            channels.append(depth)
        self.boxes = DefaultBoxGenerator([[2, 3]] * len(channels), min_ratio=0.2, max_ratio=0.95)
        self.head = SSDLiteHead(channels, self.boxes.num_anchors_per_location(), 1 + classes, nn.BatchNorm2d)

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.head(self.maps(x))
        return found


def _extra(channels: int, depth: int) -> nn.Sequential:
    """Half the side: 1x1, depthwise 3x3, 1x1."""
    half = depth // 2
    return nn.Sequential(
        Conv2dNormActivation(channels, half, 1, activation_layer=nn.ReLU6),
        Conv2dNormActivation(half, half, 3, 2, groups=half, activation_layer=nn.ReLU6),
        Conv2dNormActivation(half, depth, 1, activation_layer=nn.ReLU6),
    )


@torch.no_grad()
def build(classes: int, side: int, seed: int = 0, **shape: Any) -> tuple[SSD, dict[str, Any]]:
    """The network in eval mode, and its card. `shape`: as `SSD` takes it."""
    torch.manual_seed(seed)
    model = SSD(classes, **shape).train()
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):  # else all scores are alike, as before any training
            nn.init.kaiming_normal_(module.weight)
    for _ in range(10):
        model(torch.randn(8, 3, side, side))
    model.eval()
    grids = [m.shape[2:] for m in model.maps(torch.zeros(1, 3, side, side))]
    sizes = [pairs.clamp(0, 1).tolist() for pairs in model.boxes._wh_pairs]
    heads = [{"grid": list(grid), "boxes": boxes} for grid, boxes in zip(grids, sizes, strict=True)]
    decode = {"kind": "ssd", "variances": [0.1, 0.2], "heads": heads}
    card = {
        "input": [3, side, side],
        "mean": MEAN,
        "std": STD,
        "resize": side,
        "task": "detection",
        "classes": classes,
        "decode": decode,
    }
    return model, card


def save(model: nn.Module, card: dict[str, Any], path: Path) -> None:
    """The .pt2 file, and the card beside it."""
    example = torch.zeros(2, *card["input"])
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), path)
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


def label(model: nn.Module, card: dict[str, Any], folder: Path) -> None:
    """Write the surest boxes that the network finds in each of folder/images into folder/labels."""
    from zaq.config.card import Card
    from zaq.data import IMAGES, listed, loaded
    from zaq.evaluate import decode, outputs
    from zaq.evaluate.detection import suppress

    known = Card.from_dict(card)
    (folder / "labels").mkdir(exist_ok=True)
    for images, (sample,) in loaded(listed(f"images:{folder / 'images'}", known, IMAGES), known, 1):
        boxes, scores = decode(outputs(model, images), known)
        kept = suppress(boxes.clip(0, 1), scores, SURE, 0.0)
        best = sorted(kept.tolist(), key=lambda row: -scores[0, row[2], row[1]])[:LABELLED]
        lines = []
        for _, number, index in best:
            low, high = np.split(boxes[0, index].clip(0, 1), 2)
            lines.append(" ".join(map(str, [number, *((low + high) / 2), *(high - low)])))
        assert isinstance(sample.image, Path)
        (folder / "labels" / sample.image.with_suffix(".txt").name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--labels", type=Path)
    given = parser.parse_args()
    net, its_card = build(given.classes, given.side, width=given.width)
    save(net, its_card, given.path)
    if given.labels:
        label(net, its_card, given.labels)
