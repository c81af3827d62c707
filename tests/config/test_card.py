"""Cards: what can be none of what a card says is a sentence, by whichever way it comes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zaq.config.card import Card
from zaq.errors import SourceError

ZERO, ONE = (0.0,) * 3, (1.0,) * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (math.nan,) * 3, "std": ONE}, "mean.0 is nan; Input should be a finite number"),
        ({"mean": ZERO, "std": (math.inf,) * 3}, "std.0 is inf; Input should be a finite number"),
        ({"mean": ZERO, "std": (1.0, 0.0, 1.0)}, "std.1 is 0.0; it must be positive"),
        ({"mean": ZERO}, "mean and std come together"),
        ({"input": (1, 4, 4), "mean": ZERO, "std": ONE}, "mean has 3 values, the input 1 channels"),
        ({"resize": 0}, "resize is 0"),
        ({"crop": -4}, "crop is -4"),
        ({"classes": 0}, "classes is 0"),
        ({"input": (3, -1, 16)}, "input.1 is -1"),
        ({"input": "abc"}, "input is 'abc'; a list of numbers is expected"),
        ({"input": (3, 2**16, 2**16)}, "no model takes an image"),
        ({"input": (2**20, 4, 4), "mean": (0.5,), "std": (1,)}, "no model takes an image"),
        ({"resize": 2**63}, "resize is 9223372036854775808"),
        ({"decode": 3}, "decode is 3"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
    ],
)
def test_what_no_card_can_say(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps(values))
    for make in (
        lambda: Card(**values),
        lambda: Card.from_dict(values),
        lambda: replace(Card(), **values),
        lambda: Card().override(**values),
        lambda: Card.beside(tmp_path / "net.onnx"),
    ):
        with pytest.raises(SourceError, match=message):
            make()


def test_what_a_card_does_not_know_is_left_alone() -> None:
    card = Card.from_dict({"input": [3, 4, 4], "mean": [0, 0, 0], "std": [1, 1, 1], "somebody": "else"})
    assert card == Card(input=(3, 4, 4), mean=ZERO, std=ONE) and card.knows_pixels and not Card().knows_pixels
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_where_pixels_lie() -> None:
    low, high = Card(input=(3, 4, 4), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)).bounds()
    assert torch.equal(low.flatten(), torch.tensor([-1.0, -1.0, 0.0]))
    assert torch.equal(high.flatten(), torch.tensor([1.0, 3.0, 1.0]))
