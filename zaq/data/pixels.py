"""One image as the bytes a model's card asks for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zaq.config.card import Card
from zaq.data.layouts import Sample
from zaq.errors import DataError

__all__ = ["photograph", "read", "read_mask", "require_image", "size_of", "window"]

# What photographs and masks come in. Of the others that PIL knows, EPS is a program, which Ghostscript would run.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def read(sample: Sample[Any], card: Card) -> NDArray[np.uint8]:
    """The image (C, H, W), resized and centre-cropped as the card says; in colour (in the card's order) or in grey
    as the model takes it."""
    found = _read(sample, card)
    return np.ascontiguousarray(found[::-1]) if card.order == "bgr" else found


def _read(sample: Sample[Any], card: Card) -> NDArray[np.uint8]:
    channels, height, width = card.input
    mode = "RGB" if channels == 3 else "L"
    if not isinstance(sample.image, Path):
        if sample.image.shape == tuple(card.input) and {card.resize, card.crop} <= {None, height}:
            return sample.image
        hwc = np.moveaxis(sample.image, 0, -1)
        image = Image.fromarray(np.ascontiguousarray(hwc[..., 0] if hwc.shape[-1] == 1 else hwc)).convert(mode)
    else:
        image = _opened(sample.image, mode)
    pixels: NDArray[np.uint8] = np.asarray(_fitted(image, card, sample.where)).reshape(height, width, channels)
    return np.moveaxis(pixels, -1, 0)


def read_mask(sample: Sample[Path], card: Card) -> NDArray[np.uint8]:
    """The class of each pixel of a sample's image, (H, W), brought to the model's input as the image is, without
    blending.
    """
    mask, size = (
        np.asarray(_opened(sample.label)),
        _opened(sample.image).size if isinstance(sample.image, Path) else None,
    )
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(
            f"{sample.label}: is {mask.dtype} {mask.shape}; a mask is an image of one channel of 8 bits, a class a "
            "pixel."
        )
    if size != mask.shape[::-1]:
        raise DataError(
            f"{sample.label}: is of {mask.shape[1]} x {mask.shape[0]} pixels, its image {sample.where} of another size."
        )
    found: NDArray[np.uint8] = np.asarray(
        _fitted(Image.fromarray(mask), replace(card, interpolation="nearest"), sample.where)
    )
    return found


def require_image(path: Path) -> None:
    """Raise DataError for a file that does not begin as an image does; its pixels are not read."""
    _opened(path, decoded=False)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file in pixels, as it says itself. Raises DataError where it is none."""
    return _opened(path, decoded=False).size


def photograph(path: Path) -> Image.Image:
    """A photograph in colour, upright: phones store it as the sensor lay and say beside it how to turn it (EXIF)."""
    image: Image.Image = ImageOps.exif_transpose(_opened(path)).convert("RGB")
    return image


def window(size: tuple[int, int], card: Card) -> tuple[float, float, float, float]:
    """The part of an image of (width, height) that the model sees: left, top, right, bottom in its pixels."""
    if _whole(card):
        return 0, 0, *size
    height, width = card.input[1:]
    ratio = _ratio(size, card)
    width_seen, height_seen = width / ratio, height / ratio
    left, top = (size[0] - width_seen) / 2, (size[1] - height_seen) / 2
    return left, top, left + width_seen, top + height_seen


def _whole(card: Card) -> bool:
    """Whether images are squeezed whole into the model's input, and not cropped."""
    return card.crop is None and card.resize in (None, card.input[1])


def _ratio(size: tuple[int, int], card: Card) -> float:
    """By how much an image is resized before the crop."""
    return (card.resize or card.crop or card.input[1]) / min(size)


def _opened(path: Path, mode: str | None = None, decoded: bool = True) -> Image.Image:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: is no plain file.")
    try:
        with Image.open(path, formats=FORMATS) as file:
            image: Image.Image = file if not decoded else file.convert(mode) if mode else file.copy()
            return image
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL has for a broken file
        raise DataError(f"{path}: cannot be read as an image ({error}).") from error


def _fitted(image: Image.Image, card: Card, where: str) -> Image.Image:
    """Shorter side to `resize`, then the centre; without either the whole image, squeezed."""
    height, width = card.input[1:]
    resampling = RESAMPLING[card.interpolation]
    if _whole(card):
        return image if image.size == (width, height) else image.resize((width, height), resampling)
    if card.crop is not None and card.crop != min(height, width):
        raise DataError(
            f"the images are to be cropped to {card.crop}, the model takes {height} x {width}; change --crop, or the "
            "card."
        )
    ratio = _ratio(image.size, card)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), resampling)
    if image.width < width or image.height < height:
        size = f"{image.height} x {image.width}"
        raise DataError(
            f"{where}: resized to {size}, less than the model's {height} x {width}; a greater --resize is needed."
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
