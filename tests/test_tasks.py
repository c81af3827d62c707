"""Networks that are no classifiers, from the traced file to the measured one, by the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from conftest import zaq_here as call
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import conv, with_history

from zaq.config.card import Card
from zaq.evaluate import TASKS
from zaq.ir.capture import quiet
from zaq.sources import load
from zaq.sources.operators import define_missing_operators

SIDE = 32
GREY = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
RTN = ("--method", "rtn", "--bits", "w8a8")
FLAGSHIP = (
    "--effort",
    "fast",
    "-s",
    "synthesis=2",
    "-s",
    "images=64",
    "-s",
    "reconstruct=1",
    "-s",
    "polish=5",
    "-s",
    "game=1",
)


def quantized(model: nn.Module, card: dict[str, Any], folder: Path, *flags: object) -> Path:
    """Saved, quantized by the command line: the run."""
    torch.manual_seed(0)
    path = folder / "net.pt2"
    example = torch.zeros(2, 3, SIDE, SIDE)
    with quiet():
        torch.export.save(
            torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), path
        )
    path.with_suffix(".json").write_text(json.dumps({**GREY, **card}))
    done = call("quantize", path, *flags, "-o", folder / "out")
    assert done.exit_code == 0, done.output
    return folder / "out"


def measured(run: Path, data: str, *flags: object) -> dict[str, float]:
    done = call("eval", run, "--data", data, "--json", *flags)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def refused(*args: object) -> str:
    done = call(*args)
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    return done.stderr


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Five pictures of smooth colours in images/, no two alike."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(5):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(tmp_path / "data" / "images" / f"{i}.png")
    return tmp_path / "data"


class Pyramid(nn.Module):
    """Two heads of raw YOLO outputs, the finer one reading the coarser map as well."""

    def __init__(self, channels: int = 2 * 8) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Sequential(conv(3, 8, stride=2), conv(8, 8, stride=2)), conv(8, 16, stride=2)
        self.heads = nn.ModuleList([nn.Conv2d(16, channels, 1), nn.Conv2d(24, channels, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        return [self.heads[0](coarse), self.heads[1](torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], 1))]


DECODE = {"kind": "yolov3", "heads": [{"anchors": [[16, 16], [8, 24]]}, {"anchors": [[4, 4], [6, 3]]}]}


def test_a_detector_of_two_heads(photographs: Path, tmp_path: Path) -> None:
    """Every stage of the default method; the labels are what the float network finds."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    define_missing_operators()
    pytest.importorskip("torchvision")
    from ssd_mobilenet import label

    torch.manual_seed(1)
    model, card = with_history(Pyramid()).eval(), {"input": [3, SIDE, SIDE], "task": "detection", "classes": 3}
    label(model, {**GREY, **card, "decode": DECODE}, photographs)
    run = quantized(model, card, tmp_path, "--bits", "w6a8", *FLAGSHIP)
    stages = [s["name"] for s in json.loads((run / "report.json").read_text())["stages"]]
    assert {"synthesis", "reconstruct", "polish", "zaq"} <= set(stages)
    (tmp_path / "decode.json").write_text(json.dumps(DECODE))
    data = f"yolo:{photographs}"
    found = measured(run, data, "--decode", tmp_path / "decode.json")
    assert found["map50"] > 60 and found["total"] == 5
    assert "name their file with --decode" in refused("eval", run, "--data", data)
    (tmp_path / "other.json").write_text(
        json.dumps({**DECODE, "heads": [{"anchors": [[1, 1]]}, {"anchors": [[1, 1]]}]})
    )
    told = refused("eval", run, "--data", data, "--decode", tmp_path / "other.json")
    assert (
        "heads[0]: the model's output 0 is (N, 16, 4, 4); (N, 8, H, W) was expected, for 1 anchors of 5 + 3 channels"
        in told
    )
    assert "folder holds a class for each image, and boxes are needed" in refused(
        "eval", run, "--data", f"folder:{photographs}"
    )
    assert "top-1 needs one output" in refused(
        "eval", run, "--data", f"npz:{archive(tmp_path)}", "--task", "classification"
    )
    assert "Did you mean 'detection'?" in refused("eval", run, "--data", data, "--task", "detektion")
    assert "--decode goes with --task detection" in refused(
        "eval", run, "--data", data, "--task", "segmentation", "--decode", tmp_path / "decode.json"
    )


def archive(folder: Path) -> Path:
    np.savez(folder / "a.npz", images=np.zeros((1, SIDE, SIDE, 3), np.uint8), labels=np.zeros(1, np.int64))
    return folder / "a.npz"


@pytest.mark.slow
def test_the_ssd_of_the_paper(photographs: Path, tmp_path: Path) -> None:
    """MobileNetV2 and SSD's heads as torchvision has them; labels are what the float network finds,
    its weights random."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    define_missing_operators()
    pytest.importorskip("torchvision")
    from ssd_mobilenet import build, label, save

    model, card = build(
        classes=3, side=SIDE, width=0.35, blocks=[[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 1, 2]], depths=(64,)
    )
    with quiet():
        save(model, card, tmp_path / "ssd.pt2")
    label(model, card, photographs)
    done = call("quantize", tmp_path / "ssd.pt2", *RTN, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert measured(tmp_path / "out", f"yolo:{photographs}")["map50"] > 60
    assert TASKS["detection"](model, f"yolo:{photographs}", Card.from_dict(card)).fields()["map50"] > 90
    card["decode"]["heads"].pop()
    (tmp_path / "decode.json").write_text(json.dumps(card))
    told = refused("eval", tmp_path / "out", "--data", f"yolo:{photographs}", "--decode", tmp_path / "decode.json")
    assert "480 default boxes need the outputs (N, 480, 4) and (N, 480, 1 + 3); the model's are (N, 504, 4)" in told


class Segmenter(nn.Module):
    """LR-ASPP's shape: a coarse map gated by its own mean, brought to the image's size bilinearly; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8, stride=2), conv(8, 8, stride=2))
        self.gate, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return {"out": F.interpolate(self.out(y), x.shape[2:], mode="bilinear", align_corners=False)}


def test_a_segmenter(photographs: Path, tmp_path: Path) -> None:
    """The masks are what the float network finds; `zaq`, whose loss is a mean over pixels and a sum over classes."""
    torch.manual_seed(0)
    model = with_history(Segmenter()).eval()
    (photographs / "masks").mkdir()
    for path in sorted((photographs / "images").iterdir()):
        x = (torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        mask = model(x)["out"].argmax(1)[0].to(torch.uint8)
        mask[:4] = 255
        Image.fromarray(mask.numpy()).save(photographs / "masks" / path.name)
    run = quantized(
        model,
        {"task": "segmentation"},
        tmp_path,
        "--method",
        "zaq",
        "--bits",
        "w8a8",
        "-s",
        "warm_up=4",
        "-s",
        "rounds=2",
    )
    found = measured(run, f"masks:{photographs}")
    assert found["miou"] > 60 and found["pixel_accuracy"] > 85 and found["total"] == 5
    done = call("verify", run, "--data", f"masks:{photographs}")
    assert done.exit_code == 0 and f"model.onnx on masks:{photographs}: 5 samples" in done.output, done.output
    assert "gdfq draws images from classes and batch-norm statistics; the model is no classifier" in refused(
        "quantize", tmp_path / "net.pt2", "--method", "gdfq", "-o", tmp_path / "gdfq"
    )


class Generator(nn.Module):
    """CycleGAN's (Zhu et al. 2017) in small: instance norm, reflection padding, a residual block, a transposed
    convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(self.block(3, 8, 7), nn.Conv2d(8, 16, 3, 2, 1), nn.InstanceNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            self.block(16, 16, 3), nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), nn.InstanceNorm2d(16)
        )
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(8), nn.ReLU())
        self.out = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(8, 3, 7), nn.Tanh())

    @staticmethod
    def block(channels: int, features: int, side: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ReflectionPad2d(side // 2), nn.Conv2d(channels, features, side), nn.InstanceNorm2d(features), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.out(self.up(x + self.body(x)))


@pytest.mark.slow
def test_an_image_generator_without_batch_norm(photographs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    card = {"task": "image"}
    run = quantized(
        Generator(), card, tmp_path, "--method", "zaq", "--bits", "w8a8", "--effort", "fast", "-s", "rounds=1"
    )
    assert "neither batch norm nor classes" in (run / "report.json").read_text()
    data, teacher = f"images:{photographs}", tmp_path / "net.pt2"
    found = measured(run, data, "--teacher", teacher)
    assert found["psnr"] > 25 and found["ssim"] > 0.8 and found["total"] == 5
    assert measured(run / "model.onnx", data, "--teacher", teacher, "--limit", 2)["total"] == 2
    assert "name it with --teacher MODEL" in refused("eval", run / "model.onnx", "--data", data)
    assert measured(run, data)["psnr"] == found["psnr"]  # beside the float network that the run keeps
    assert "was made from another model, net" in refused(
        "eval", run, "--data", data, "--teacher", "zoo:resnet20_cifar10"
    )
    for method, sentence in (
        ("zeroq", "zeroq lives on the statistics of batch norms, and this model has none"),
        ("gdfq", "the model is no classifier and has no batch norm that could be folded. --method zaq needs neither"),
        ("deepinversion", "deepinversion needs batch norms or classes, and this model has neither"),
    ):
        assert sentence in refused("quantize", teacher, "--method", method, "-o", tmp_path / method)


def test_the_yolo_finds_in_photographs_what_its_card_says(shared: Path) -> None:
    """30.72 on all 128 (benchmarks/README.md); 45.1 on the first 24, which are the easier ones."""
    model = load(str(shared / "models" / "yolov3_nano_voc.pt2"))
    found = TASKS["detection"](model.graph, f"yolo:{shared / 'data' / 'coco128'}", model.card, 24).fields()
    assert found["map50"] == pytest.approx(45.1, abs=1) and found["total"] == 24
