"""What kind of data set a folder or a file is, where only its path was named. By names alone: nothing is opened."""

from collections.abc import Callable
from pathlib import Path

__all__ = ["guess"]

IMAGES = ("*.bmp", "*.jpeg", "*.jpg", "*.png", "*.ppm", "*.webp")
PARTS = ("", "test", "val", "train")


def guess(path: Path) -> str:
    """The kind, as `--data KIND:PATH` has it; "" where nothing fits."""
    return next((kind for kind, fits in SIGNS.items() if fits(path)), "")


def _any(path: Path, *patterns: str) -> bool:
    return any(next(path.glob(pattern), None) is not None for pattern in patterns)


def _folders_of_images(path: Path) -> bool:
    return any(_any(path / part, *(f"*/{image}" for image in IMAGES)) for part in PARTS)


# The first that fits: those that hold more than images before those that are images alone.
SIGNS: dict[str, Callable[[Path], bool]] = {
    "npz": lambda path: path.suffix.lower() == ".npz",
    "cifar10": lambda path: _any(path, "test_batch*", "cifar-10-batches-*"),
    "cifar100": lambda path: _any(path, "test.bin", "cifar-100-*"),
    "csv": lambda path: (path / "labels.csv").is_file(),
    "yolo": lambda path: (path / "images").is_dir() and (path / "labels").is_dir(),
    "masks": lambda path: (path / "images").is_dir() and (path / "masks").is_dir(),
    "images": lambda path: (path / "images").is_dir() or (_any(path, *IMAGES) and not _folders_of_images(path)),
    "folder": _folders_of_images,
}
