"""Boxes and masks drawn on a photograph."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Box", "blended", "boxed", "colour"]

OPACITY = 0.55  # of a mask
SMALLEST = 12  # pixels that letters are high


@dataclass(frozen=True)
class Box:
    """A thing found: the name and the number of its class, the score, and x1, y1, x2, y2 in pixels."""

    name: str
    number: int
    score: float
    corners: tuple[float, ...]


def colour(number: int) -> tuple[int, int, int]:
    """A class's colour: hues a golden angle apart, so that neighbours in the list are far from each other."""
    red, green, blue = colorsys.hls_to_rgb((0.02 + number * 0.618034) % 1, 0.5, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def boxed(photo: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with every box and its name; the surest is drawn last, over the others."""
    drawn = photo.copy()
    pen, font = ImageDraw.Draw(drawn), _font(photo)
    for box in reversed(boxes):
        pen.rectangle(box.corners, outline=colour(box.number), width=max(2, min(photo.size) // 160))
        _label(pen, font, box.corners[:2], f" {box.name} {100 * box.score:.0f} % ", box.number)
    return drawn


def blended(
    photo: Image.Image,
    classes: NDArray[np.int64],
    region: tuple[float, float, float, float],
    names: Mapping[int, str],
) -> Image.Image:
    """The `region` of a photograph under the colours of its pixels' classes (H, W), class 0 left as it is, and what
    they mean.
    """
    box = tuple(round(v) for v in region)
    seen = photo.crop(box)  # type: ignore[arg-type]
    table = np.array([colour(i) for i in range(int(classes.max()) + 1)], np.uint8)
    over = Image.fromarray(table[classes]).resize(seen.size, Image.Resampling.NEAREST)
    weight = Image.fromarray(np.where(classes > 0, round(255 * OPACITY), 0).astype(np.uint8))
    drawn = Image.composite(over, seen, weight.resize(seen.size, Image.Resampling.NEAREST))
    pen, font = ImageDraw.Draw(drawn), _font(seen)
    for line, number in enumerate(number for number in names if number > 0):
        _label(pen, font, (4, 4 + line * (font.size + 8)), f" {names[number]} ", number)
    return drawn


def _font(photo: Image.Image) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(SMALLEST, min(photo.size) // 28))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _label(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, at: Sequence[float], text: str, number: int) -> None:
    """White letters on a class's colour."""
    place = pen.textbbox((at[0], at[1]), text, font=font)
    pen.rectangle((*at, place[2], place[3] + 2), fill=colour(number))
    pen.text((at[0], at[1]), text, fill="white", font=font)
