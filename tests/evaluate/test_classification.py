"""Scores: the interval is the binomial's, file and module are asked alike, and a model without classes is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import zaq as command
from onnx import TensorProto, helper
from torch import Tensor, nn
from zoo import SHAPE, quantized_net

from zaq.config.card import Card
from zaq.engine.progress import Progress
from zaq.errors import DataError, SourceError
from zaq.evaluate import Score, predictions, stored_card, top1
from zaq.export.onnx import INPUT
from zaq.export.session import session
from zaq.methods.zaq import ZAQ

CARD = Card(input=(3, 4, 4), mean=(0.5,) * 3, std=(0.25,) * 3, classes=3)


class Brightest(nn.Module):
    """The class is the brightest channel; a parameter, so that it has a device."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.mean((2, 3))


class Counted(Progress):
    steps = 0

    def track(self, what: str, steps: int) -> Iterator[int]:
        for step in range(steps):
            self.steps += 1
            yield step


@pytest.fixture
def coloured(tmp_path: Path) -> str:
    """250 images, each of the colour that its label names, but for the last 50."""
    labels = np.arange(250) % 3
    pixels = np.zeros((250, 4, 4, 3), np.uint8)
    pixels[np.arange(250), :, :, labels] = 255
    labels[200:] = (labels[200:] + 1) % 3
    np.savez(tmp_path / "colours.npz", images=pixels, labels=labels)
    return f"npz:{tmp_path / 'colours.npz'}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Brightest as an ONNX file that says, as zaq's do, how its input is prepared."""
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", [INPUT], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["y"])],
        "brightest",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"zaq.card": json.dumps(CARD.to_dict())})
    onnx.save(model, tmp_path / "brightest.onnx")
    return tmp_path / "brightest.onnx"


def test_interval_of_ten_thousand_images() -> None:
    score = Score(9000, 10000)
    assert score.percent == 90 and score.interval == pytest.approx(0.588, abs=1e-3)
    assert str(score) == "top-1 90.00 % (+-0.59, 9000 of 10000 images)"


def test_a_module_and_a_file_are_asked_alike(file: Path, coloured: str) -> None:
    for model in (Brightest(), session(file)):
        predicted, labels = predictions(model, coloured, CARD)
        assert predicted.dtype == labels.dtype == np.int64
        assert predicted.tolist() == (np.arange(250) % 3).tolist()
        assert Score.of(predicted, labels) == Score(200, 250) == top1(file, coloured, CARD)


def test_the_bar_goes_as_far_as_the_limit(file: Path, coloured: str) -> None:
    for limit, steps in ((None, 3), (1000, 3), (200, 2), (7, 1)):
        bar = Counted()
        assert top1(file, coloured, CARD, limit, bar).total == min(limit or 250, 250) and bar.steps == steps
    with pytest.raises(DataError, match="no images within a limit of 0"):
        top1(file, coloured, CARD, limit=0)


def test_a_file_says_how_its_input_is_prepared(file: Path, tmp_path: Path) -> None:
    assert stored_card(file) == CARD
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(SourceError, match=r"bare\.onnx: holds no card"):
        stored_card(tmp_path / "bare.onnx")


def test_top1_needs_classes(tmp_path: Path, coloured: str) -> None:
    card = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
    quantized = quantized_net("transposed", "w8a8", ZAQ(warm_up=0, rounds=0, latent=16, width=16), card=card)
    quantized.export(tmp_path / "model.onnx")
    with pytest.raises(DataError, match=r"top-1 needs one output \(N, classes\)"):
        top1(tmp_path / "model.onnx", "cifar10:/nowhere", card)
    with pytest.raises(DataError, match=r"the model: top-1 needs one output \(N, classes\)"):
        predictions(nn.Identity(), coloured, CARD)


def test_eval_of_a_file_alone_with_its_card_overridden(file: Path, coloured: str, tmp_path: Path) -> None:
    """A channel's mean so great that no other one is ever the brightest: what the flags say is what is done."""
    done = command(
        "eval", file, "--data", coloured, "--mean", "0.5,0.5,-9", "--std", "1,1,1", "--limit", 6, "--json", "-q"
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr and json.loads(done.stdout)["correct"] == 2
    done = command("eval", file, "--data", f"npz:{tmp_path}")
    assert done.returncode == 2 and "is a folder; npz needs a file" in done.stderr
    done = command("eval", file, "--data", coloured, "--input-shape", "3,8,8")
    assert done.returncode == 2 and "brightest.onnx: takes inputs of (3, 4, 4)" in done.stderr
