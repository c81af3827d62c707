"""What outputs mean, on outputs written down by hand."""

from dataclasses import replace

import numpy as np
import pytest

from zaq.config.card import Card
from zaq.data.pixels import window
from zaq.errors import DataError
from zaq.use.answers import READERS, Asked

CARD = Card(input=(3, 2, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
SIZE = (8, 4)


def test_probabilities_are_made_once() -> None:
    """Of logits; what a softmax has been through already stays."""
    for values in ([0.0, np.log(3)], [0.25, 0.75]):
        (first, _) = READERS["classification"]([np.array([values], np.float32)], Asked(CARD), SIZE).fields()["classes"]
        assert first["name"] == "class 1" and first["probability"] == pytest.approx(0.75, abs=1e-6)


def test_a_background_that_only_the_names_have() -> None:
    """torchvision's detectors name it first, and SSD's scores leave it out."""
    assert Asked(CARD, ("__background__", "cat", "dog")).name(1, 2) == "dog"
    assert Asked(CARD, ("cat", "dog")).name(1, 2) == "dog" and Asked(CARD, ("cat",)).name(0, 3) == "class 0"


def test_one_channel_alone_is_a_mask() -> None:
    logits = np.array([[[[-1, -1, 2, 2], [-1, -1, 2, 2]]]], np.float32)
    answer = READERS["segmentation"]([logits], Asked(CARD, ("sky", "bird")), SIZE)
    assert answer.fields() == {"pixels": {"sky": 0.5, "bird": 0.5}}


def test_colours_of_images_are_in_the_card_s_order() -> None:
    values = np.zeros((1, 3, 2, 4), np.float32)
    values[0, 0] = 2  # (2 x 0.25 + 0.5): the first channel is full, the others half
    for order, wanted in (("rgb", (255, 128, 128)), ("bgr", (128, 128, 255))):
        answer = READERS["image"]([values], Asked(replace(CARD, order=order)), SIZE)
        assert (answer.pixels == wanted).all()  # type: ignore[attr-defined]


def test_equal_images_and_vectors_are_said_to_be() -> None:
    values = np.ones((1, 3, 2, 4), np.float32)
    for task, said in (("image", "equal"), ("embedding", "1.0000")):
        answer = READERS[task]([values], Asked(CARD), SIZE)
        assert answer.rows(answer)[-1][1] == said


@pytest.mark.parametrize("task", ["classification", "segmentation", "image", "embedding"])
def test_outputs_of_another_task(task: str) -> None:
    given = [np.zeros((1, 2), np.float32)] * (1 if task == "segmentation" else 2)
    with pytest.raises(DataError, match=f"--task {task} needs one output"):
        READERS[task](given, Asked(CARD), SIZE)


def test_the_part_of_a_photograph_that_is_seen() -> None:
    assert window((8, 4), CARD) == (0, 0, 8, 4)  # squeezed whole
    square = Card(input=(3, 16, 16), resize=20, crop=16)
    assert window((80, 40), square) == (24, 4, 56, 36)  # halved, then 16 of 20 pixels
