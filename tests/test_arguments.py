"""What `zaq.quantize` is called with by mistake is a sentence, before anything is traced."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo import ZOO, build, images, traced

import zaq
from zaq import Card, QConfig, Quantized
from zaq.arguments import require_arguments
from zaq.errors import UserError
from zaq.methods.rtn import RTN

NET, X = build("residual"), images(1)


@pytest.mark.parametrize(("wrong", "told"), [
    ({"model": "timm:resnet18"}, r"zaq.quantize\(zaq.load\('timm:resnet18'\)"),
    ({"model": Path("net.pt2")}, r"zaq.load\('net.pt2'\)"),
    ({"model": ZOO["residual"]}, r"it is a class; write Residual\(...\)"),
    ({"model": NET.state_dict()}, "weights alone are no network"),
    ({"model": lambda x: x}, "a torch.nn.Module is expected"),
    ({"example_input": (1, 3, 16, 16)}, r"is a shape; write torch.zeros\(1, 3, 16, 16\)"),
    ({"example_input": (X,)}, "is a tuple of one tensor; write the tensor itself"),
    ({"example_input": X.numpy()}, "is no tensor; write torch.from_numpy"),
    ({"example_input": "3,16,16"}, "is no tensor; write torch.zeros"),
    ({"example_input": X[0]}, r"is one image \(C, H, W\).*write example_input\[None\]"),
    ({"example_input": {"x": X[0]}}, r"example_input\['x'\]: of \(3, 16, 16\) is one image"),
    ({"example_input": None}, "needs an example_input"),
    ({"bits": (4, 4)}, r"bits: \(4, 4\) is none; write 'w4a4'"),
    ({"bits": 4.0}, "bits: 4.0 is none"),
    ({"bits": True}, "bits: True is none"),
    ({"bits": 9}, "2 to 8 are supported"),
    ({"method": RTN}, r"is no zaq.methods.Method; write RTN\(\)"),
    ({"method": "rnt"}, "Did you mean 'rtn'"),
    ({"method": 3}, "3 is no zaq.methods.Method"),
    ({"card": {"mean": (0.5,) * 3}}, r"card: \{'mean'.* write Card\(mean="),
    ({"card": (0.5, 0.25)}, "card: .* is none; write Card"),
    ({"effort": 1}, "effort: 1 is none; write 'fast'"),
    ({"effort": "fats"}, "Did you mean 'fast'"),
    ({"seed": "0"}, "seed: '0' is none"),
    ({"seed": 0.5}, "seed: 0.5 is none"),
    ({"dynamic": (2, 3)}, r"dynamic: \(2, 3\) is none; write 'H,W'"),
    ({"bits": QConfig(4, 4, layer_bits={"stem.0.wieght": 8})}, "Did you mean 'stem.0.weight'"),
])  # fmt: skip
def test_a_mistake_is_a_sentence(wrong: dict[str, Any], told: str) -> None:
    call: dict[str, Any] = {"model": NET, "example_input": X, "bits": "w8a8", "method": "rtn"} | wrong
    with pytest.raises(UserError, match=told):
        zaq.quantize(**call)


def test_what_is_quantized_already() -> None:
    quantized = Quantized(module=traced("residual"), report={}, card=Card())
    with pytest.raises(UserError, match="it is quantized already"):
        zaq.quantize(quantized, X)  # type: ignore[arg-type]


def test_an_array_is_no_example_whatever_its_kind() -> None:
    with pytest.raises(UserError, match=r"write torch\.from_numpy"):
        zaq.quantize(NET, np.zeros((1, 3, 16, 16), np.uint8))  # type: ignore[arg-type]


@pytest.mark.parametrize(("net", "shape"), [
    (torch.nn.Conv1d(3, 4, 3), (1, 3, 16)),
    (torch.nn.Sequential(torch.nn.Unflatten(1, (1, 40)), torch.nn.Conv2d(1, 4, 3)), (1, 40, 16)),  # spectrograms
    (NET, (2, 3, 16, 16)),
])  # fmt: skip
def test_what_only_looks_like_an_image_is_taken(net: torch.nn.Module, shape: tuple[int, ...]) -> None:
    require_arguments(net, torch.zeros(shape), 8, Card(), "fast", 0, "")
