"""What lies where in data sets whose labels are more than a class; nothing here decodes an image.

yolo:DIR     images/ and labels/ with a text file an image, a line `class cx cy w h` an object, in parts of the image's
size;
             *.names or classes.txt say which class is which (see `names`)
masks:DIR    images/ and masks/ with a PNG file an image, whose pixels are class numbers; 255 counts nowhere
images:DIR   images alone

images/ may have parts: images/test or images/val, or test/images or val/images, and the labels likewise; without those,
all there is counts.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zaq.config.bounds import plain_text
from zaq.config.card import Card
from zaq.data.layouts import Layout, Sample, is_image
from zaq.data.names import class_numbers
from zaq.errors import DataError

__all__ = ["BOXES", "IMAGES", "MASKS", "Boxes"]

Boxes = NDArray[np.float32]  # (n, 5): class, x1, y1, x2, y2 in parts of the image's width and height
PARTS = ("images/test", "images/val", "test/images", "val/images", "valid/images", "images")
SLACK = 0.01  # by which a box may stick out of its image, as rounded ones do


def _yolo(root: Path, split: str, card: Card) -> list[Sample[Boxes]]:
    height = card.input[1]
    if card.crop is not None or card.resize not in (None, height):
        raise DataError(
            "detection looks at whole images, and the card has them cropped; leave --resize and --crop out."
        )
    pairs = _pairs(root, "labels", ".txt")
    if not any(label.is_file() for _, label in pairs):
        raise DataError(
            f"{pairs[0][1]}: not found, nor any other label; yolo:DIR needs labels/ beside images/, a .txt file an "
            "image."
        )
    numbers = class_numbers(root, card)
    return [Sample(image, _boxes(label, numbers, card), str(image)) for image, label in pairs]


def _boxes(path: Path, numbers: dict[int, int] | None, card: Card) -> Boxes:
    """The objects of one image whose class the model knows; a file that is missing has none."""
    found = []
    try:
        lines = plain_text(path).splitlines() if path.exists() else []
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as text ({error}).") from error
    for line, words in enumerate(lines, 1):
        if not words.strip():
            continue
        try:
            number, cx, cy, w, h = (float(word) for word in words.split())
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {words[:60]!r} is not of the form `class cx cy w h`.") from error
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        if not number.is_integer() or not 0 <= number < 1e9:
            raise DataError(f"{path}, line {line}: {number:g} is no class number.")
        if not (min(w, h) > 0 and min(corners) >= -SLACK and max(corners) <= 1 + SLACK):
            raise DataError(
                f"{path}, line {line}: the box lies outside its image; cx cy w h count in parts of its width and "
                "height."
            )
        if numbers is None and card.classes is not None and number >= card.classes:
            raise DataError(f"{path}, line {line}: class {number:g} is outside 0..{card.classes - 1}.")
        known = int(number) if numbers is None else numbers.get(int(number))
        if known is not None:
            found.append((known, *corners))
    return np.array(found, np.float32).reshape(-1, 5)


def _masks(root: Path, split: str, card: Card) -> list[Sample[Path]]:
    pairs = _pairs(root, "masks", ".png")
    if missing := [mask for _, mask in pairs if not mask.is_file()]:
        raise DataError(
            f"{missing[0]}: not found; masks:DIR needs a mask for each image, a .png file of the same name in masks/."
        )
    return [Sample(image, mask, str(image)) for image, mask in pairs]


def _images(root: Path, split: str, card: Card) -> list[Sample[None]]:
    found = [Sample(p, None, str(p)) for p in sorted(root.rglob("*")) if is_image(p.relative_to(root))]
    if not found:
        raise DataError(f"{root}: holds no images.")
    return found


def _pairs(root: Path, folder: str, suffix: str) -> list[tuple[Path, Path]]:
    """Each image of the part to measure on, and the file beside it in `folder`, which may not exist."""
    part = next((p for p in PARTS if (root / p).is_dir()), None)
    if part is None:
        raise DataError(f"{root}: has no images/; it needs images/ and {folder}/.")
    place, labels = root / part, root / part.replace("images", folder)
    images = [p.relative_to(place) for p in sorted(place.rglob("*")) if is_image(p.relative_to(place))]
    if not images:
        raise DataError(f"{place}: holds no images.")
    return [(place / p, (labels / p).with_suffix(suffix)) for p in images]


BOXES: dict[str, Layout[Boxes]] = {"yolo": _yolo}
MASKS: dict[str, Layout[Path]] = {"masks": _masks}
IMAGES: dict[str, Layout[None]] = {"images": _images}
