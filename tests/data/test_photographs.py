"""A folder of photographs: brought to the model's size, or refused with the path."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zaq.config.card import Card
from zaq.data import photographs
from zaq.data.photographs import photographs_in
from zaq.errors import DataError

CARD = Card(input=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def filled(folder: Path, count: int, size: tuple[int, int] = (16, 16)) -> Path:
    """Images of one grey each, the i-th of 5 i."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (5 * i,) * 3).save(folder / f"{i:03}.png")
    return folder


def test_they_are_bytes_of_the_models_size_and_a_note_says_which_were_not(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    Image.new("L", (40, 20), 200).save(tmp_path / "wide.png")
    found = photographs_in(tmp_path, CARD)
    assert found.pixels.dtype == torch.uint8 and found.pixels.shape == (4, 3, 16, 16)
    assert found.pixels[:, 1, 7, 7].tolist() == [0, 5, 10, 200] and found.place == f"images:{tmp_path}"
    assert found.notes == ("1 of its 4 images were of another size, and brought to 16 x 16",)


def test_of_very_many_some_are_taken_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "MOST", 4)
    found = photographs_in(filled(tmp_path, 10), CARD)
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 10, 25, 35] and "of its 10 images 4 are taken" in found.notes[0]


def test_colours_are_in_the_models_order(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16, 3), (1, 2, 3), np.uint8)).save(tmp_path / "a.png")
    found = photographs_in(tmp_path, Card(input=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, order="bgr"))
    assert found.pixels[0, :, 0, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (CARD, "holds no images"),
        (Card(input=(3, 16, 16)), "--proxy: the model's normalisation is unknown"),
        (Card(input=(4, 16, 16), mean=(0.5,), std=(0.5,)), "a photograph has 1 or 3 channels"),
        (Card(input=(3, 16), mean=(0.5,), std=(0.5,)), "the model takes \\(3, 16\\) of a sample"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(card: Card, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        photographs_in(tmp_path, card)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    (tmp_path / "zz.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"zz\.jpg: cannot be read as an image"):
        photographs_in(tmp_path, CARD)
