"""Boxes and masks as people have them on disk, and what is said of those that are something else."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zaq.config.card import Card
from zaq.data import BOXES, DATASETS, IMAGES, MASKS, batches, listed, loaded, read_mask
from zaq.errors import DataError

CARD = Card(input=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, resize=8, classes=3)


def picture(path: Path, size: tuple[int, int] = (16, 12), mode: str = "RGB", colour: Any = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def text(path: Path, words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.jpg")
    text(tmp_path / "labels" / "a.txt", "2 0.5 0.5 0.5 1.0\n\n0 0.1 0.2 0.2 0.4\n")
    return tmp_path


def boxes(root: Path, card: Card = CARD) -> list[list[list[float]]]:
    return [s.label.tolist() for s in listed(f"yolo:{root}", card, BOXES)]


def test_boxes_become_corners_and_no_file_means_no_objects(yolo: Path) -> None:
    (first, second), none = boxes(yolo)
    assert first == [2, 0.25, 0, 0.75, 1] and second == pytest.approx([0, 0, 0, 0.2, 0.4], abs=1e-6) and none == []
    images, _ = next(loaded(listed(f"yolo:{yolo}", CARD, BOXES), CARD, 2))
    assert images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("part", ["images/val", "val/images", "images/test"])
def test_parts(yolo: Path, part: str) -> None:
    picture(yolo / part / "c.png")
    text(yolo / part.replace("images", "labels") / "c.txt", "1 0.5 0.5 1 1")
    assert boxes(yolo) == [[[1, 0, 0, 1, 1]]]


def test_names_say_which_class_is_which(yolo: Path) -> None:
    """Aliases of the two famous sets, further names after commas, and classes that the model does not know."""
    text(yolo / "coco.names", "Potted plant\nzebra\nTV\ncar\n")
    text(yolo / "voc.names", "car\ntvmonitor\npottedplant\n")
    assert [row[0] for row in boxes(yolo)[0]] == [1, 2]
    card = dataclasses.replace(CARD, decode={"names": ["zebra", "plant, potted-plant", "lorry"]})
    with pytest.raises(DataError, match="do not say which class is which"):  # two files, and neither is the model's
        boxes(yolo, card)
    (yolo / "voc.names").unlink()
    assert [row[0] for row in boxes(yolo, card)[0]] == [1]
    with pytest.raises(DataError, match=r"coco.names with 4 classes for a model of 3 do not say"):
        boxes(yolo)
    with pytest.raises(DataError, match="names no class that the model knows, as apple"):
        boxes(yolo, dataclasses.replace(CARD, decode={"names": ["apple", "pear", "plum"]}))
    with pytest.raises(DataError, match="2 names for a model of 3 classes"):
        boxes(yolo, dataclasses.replace(CARD, decode={"names": ["car", "zebra"]}))
    with pytest.raises(DataError, match="names must be a list"):
        boxes(yolo, dataclasses.replace(CARD, decode={"names": {"0": "car"}}))
    text(yolo / "coco.names", "a\nb\nc\n")  # alone, and as many as the model's: the same numbers
    assert [row[0] for row in boxes(yolo)[0]] == [2, 0]


@pytest.mark.parametrize(("line", "message"), [
    ("cat 0.5 0.5 1 1", "is not of the form `class cx cy w h`"),
    ("0 0.1 0.1 0.2 0.1 0.2 0.2", "is not of the form `class cx cy w h`"),
    ("0.5 0.5 0.5 1 1", "is no class number"),
    ("1e300 0.5 0.5 1 1", "is no class number"),
    ("0 60 40 20 20", "count in parts of its width and height"),
    ("3 0.5 0.5 1 1", r"class 3 is outside 0\.\.2"),
])  # fmt: skip
def test_what_is_no_box(line: str, message: str, yolo: Path) -> None:
    text(yolo / "labels" / "b.txt", line)
    with pytest.raises(DataError, match=rf"b\.txt, line 1: .*{message}"):
        boxes(yolo)


def test_folders_that_are_none(yolo: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="and the card has them cropped"):
        boxes(yolo, dataclasses.replace(CARD, crop=8))
    (yolo / "labels" / "a.txt").unlink()
    with pytest.raises(DataError, match="yolo:DIR needs labels/ beside images/"):
        boxes(yolo)
    with pytest.raises(DataError, match="has no images/"):
        boxes(yolo / "labels")
    with pytest.raises(DataError, match="holds no images"):
        listed(f"images:{yolo / 'labels'}", CARD, IMAGES)


def test_labels_of_the_wrong_sort_are_a_sentence(yolo: Path) -> None:
    with pytest.raises(DataError, match=r"folder holds a class for each image, and boxes are needed: yolo:DIR\."):
        listed(f"folder:{yolo}", CARD, BOXES)
    with pytest.raises(DataError, match=r"yolo holds boxes, and a class for each image is needed: .*npz:FILE"):
        next(batches(f"yolo:{yolo}", CARD))
    with pytest.raises(DataError, match=r"images holds images alone, and a mask for each image is needed: masks:DIR"):
        listed(f"images:{yolo}", CARD, MASKS)
    with pytest.raises(DataError, match="Did you mean 'yolo'"):
        listed(f"yolov3:{yolo}", CARD, BOXES)
    assert "yolo" not in DATASETS and len(listed(f"images:{yolo}", CARD, IMAGES)) == 2


def test_masks_follow_their_image(tmp_path: Path) -> None:
    """Resized and cropped with it, and no two classes blended into a third."""
    picture(tmp_path / "images" / "a.png", (16, 8))
    mask = np.zeros((8, 16), np.uint8)
    mask[:, 6:], mask[:, 12:] = 2, 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    (sample,) = listed(f"masks:{tmp_path}", CARD, MASKS)
    assert read_mask(sample, dataclasses.replace(CARD, crop=8, resize=None)).tolist() == mask[:, 4:12].tolist()
    assert np.unique(read_mask(sample, CARD)).tolist() == [0, 2, 255] and read_mask(sample, CARD).shape == (8, 8)
    palette = Image.fromarray(mask).convert("P")
    palette.putdata(mask.ravel().tolist())
    palette.save(tmp_path / "masks" / "a.png")
    assert read_mask(sample, CARD).max() == 255


def test_masks_that_are_none(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: not found; masks:DIR needs a mask for each image"):
        listed(f"masks:{tmp_path}", CARD, MASKS)
    for mode, size, message in (
        ("RGB", (16, 12), "an image of one channel of 8 bits"),
        ("L", (4, 4), "its image .* of another size"),
    ):
        picture(tmp_path / "masks" / "a.png", size, mode)
        with pytest.raises(DataError, match=message):
            read_mask(listed(f"masks:{tmp_path}", CARD, MASKS)[0], CARD)


def test_images_alone_are_of_any_depth(tmp_path: Path) -> None:
    picture(tmp_path / "deep" / "down" / "a.png", colour=(255, 0, 0))
    (images, _), *_ = loaded(listed(f"images:{tmp_path}", CARD, IMAGES), CARD, 4)
    assert torch.equal(images[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
