"""What lies where in the data sets people have whose images are of one class each; nothing here decodes an image.

cifar10:DIR, cifar100:DIR   the official binary or python layout, in DIR or in the folder that the archive unpacks to
folder:DIR                  one folder a class, in DIR or in its train/, val/ and test/
csv:DIR                     DIR/labels.csv with the columns file and label, and split if there are parts
npz:FILE                    the arrays images and labels, or x_train, y_train, x_test and y_test as keras has them

Evaluation reads the part `test`, or `val` where there is no `test`; `train` is for fine-tuning.
"""

import csv
import math
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from zaq.config.bounds import capacity, entries
from zaq.config.card import Card
from zaq.errors import DataError

__all__ = ["DATASETS", "Sample", "is_image"]

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


L = TypeVar("L")


@dataclass(frozen=True)
class Sample(Generic[L]):
    """A labelled image that may not have been opened yet."""

    image: Path | NDArray[np.uint8]  # a file, or bytes (C, H, W)
    label: L  # its class; elsewhere (`annotated`) boxes, or a mask's file
    where: str  # what a sentence about it calls it


Layout = Callable[
    [Path, str, Card], list[Sample[L]]
]  # a place, the part asked for, the model's card -> what lies there


@dataclass(frozen=True)
class Cifar:
    """The official archives: records of bytes, or what Python 2 pickled."""

    folders: tuple[str, str]
    train: tuple[str, ...]
    test: tuple[str, ...]
    heads: int  # label bytes of a record; the last one counts
    key: bytes  # of the labels in the pickle

    def __call__(self, root: Path, split: str, card: Card) -> list[Sample[int]]:
        paths = self._find(root, self.train if split == "train" else self.test)
        if not paths and split == "train" and self._find(root, self.test):
            raise _no_training(root, f"put {', '.join(self.train)} of the official archive beside {self.test[0]}.")
        if not paths:
            raise DataError(
                f"{root}: {self.test[0]}.bin of the official binary layout or {self.test[0]} of the python layout was "
                "not found, "
                f"neither there nor in {' or '.join(self.folders)}."
            )
        if missing := [str(p) for p in paths if not p.is_file()]:
            raise DataError(f"{', '.join(missing)}: not found, though {paths[0].name} is there.")
        read = self._records if paths[0].suffix else self._pickled
        return [s for path in paths for s in read(path)]

    def _find(self, root: Path, names: tuple[str, ...]) -> list[Path]:
        for folder in (root, *(root / f for f in self.folders)):
            for suffix in (".bin", ""):
                if (folder / (names[0] + suffix)).is_file():
                    return [folder / (n + suffix) for n in names]
        return []

    def _records(self, path: Path) -> list[Sample[int]]:
        raw = np.fromfile(path, np.uint8)
        if not len(raw) or len(raw) % (3072 + self.heads):
            raise DataError(f"{path}: {len(raw)} bytes are no whole number of {3072 + self.heads}-byte records.")
        raw = raw.reshape(-1, 3072 + self.heads)
        return _samples(raw[:, self.heads :].reshape(-1, 3, 32, 32), raw[:, self.heads - 1], f"{path}, record")

    def _pickled(self, path: Path) -> list[Sample[int]]:
        try:
            with path.open("rb") as stream:
                found = Unpickler(stream, path).load()
            images, labels = found[b"data"].array(), np.asarray(found[self.key])
        except DataError:
            raise
        except Exception as error:  # junk in a pickle ends in any exception there is
            raise DataError(f"{path}: is not CIFAR's python layout ({type(error).__name__}: {error}).") from error
        if images.shape != (labels.size, 3072) or labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
            raise DataError(
                f"{path}: data of {images.shape} for {labels.size} labels; (N, 3072) and N whole numbers are expected."
            )
        return _samples(images.reshape(-1, 3, 32, 32), labels, f"{path}, record")


class Pickled:
    """Stands for numpy's array and its type while a pickle is read: numpy believes whatever state it is handed, and may
    crash on it.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[np.uint8]:
        _, shape, kind, fortran, content = self.state
        if kind.arguments[0] not in ("u1", b"u1"):
            raise ValueError(f"data of type {kind.arguments[0]}, not u1")
        values: NDArray[np.uint8] = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
        return values


class Unpickler(pickle.Unpickler):
    """Reads an array of bytes in plain containers and nothing else: what a pickle names is called, whatever it is."""

    NAMES = frozenset(
        {
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.ndarray",
            "numpy.dtype",
        }  # numpy 1, 2
    )

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        super().__init__(stream, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.NAMES:
            raise DataError(
                f"{self.path}: this pickle wants {module}.{name}, which no CIFAR file does; it was refused, not run."
            )
        return Pickled


def _by_name(folders: list[str], classes: tuple[str, ...]) -> dict[str, int]:
    """The class that each folder is called after, in any of its words (`tench, Tinca tinca`); none unless all are."""
    known: dict[str, set[int]] = {}
    for label, words in enumerate(classes):
        for word in (words, *words.split(",")):
            known.setdefault(_plain(word), set()).add(label)
    found = {f: known.get(_plain(f), set()) for f in folders}
    one_each = all(len(labels) == 1 for labels in found.values())
    return {f: min(labels) for f, labels in found.items()} if one_each else {}


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _folder(root: Path, split: str, card: Card) -> list[Sample[int]]:
    """Folder names in sorted order give the labels 0, 1, ... as in torchvision; names that are all integers are the
    labels, and names that are all those of the model's classes give theirs.
    """
    parts = {
        n: root / n for n in ("train", "val", "test") if _folders(root / n)
    }  # a class may be called train: it holds images
    part = "train" if split == "train" else "test" if "test" in parts else "val"
    if part == "train" and part not in parts:
        raise _no_training(root, "put the class folders of one part into train/ and those of the other into val/.")
    if parts and part not in parts:
        raise DataError(f"{root}: holds {', '.join(parts)} but neither test nor val to evaluate on.")
    names = sorted({f.name for place in parts.values() or [root] for f in _folders(place)})
    if not names:
        raise DataError(f"{root}: holds no folders; folder:DIR needs one folder a class, with its images inside.")
    numbers = all(n.isdecimal() for n in names)
    labels = {n: int(n) if numbers else i for i, n in enumerate(names)}
    named = {} if numbers else _by_name(names, card.class_names)
    if named:
        labels = named
    elif not numbers and card.classes not in (None, len(names)):
        raise DataError(
            f"{root}: {len(names)} class folders for a model of {card.classes} classes, so that their order does not "
            "say which is which; "
            "name each folder by its class number."
        )
    place = parts.get(part, root)
    samples = [
        Sample(p, labels[f.name], str(p))
        for f in _folders(place)
        for p in sorted(f.rglob("*"))
        if is_image(p.relative_to(f))
    ]
    if not samples:
        raise DataError(
            f"{place}: no images in its class folders; files named {', '.join(sorted(SUFFIXES))} are looked for."
        )
    return samples


def _folders(place: Path) -> list[Path]:
    return sorted(f for f in place.iterdir() if f.is_dir() and not f.name.startswith(".")) if place.is_dir() else []


def is_image(path: Path) -> bool:
    """Whether a file, named from within its data set, is an image by its name, and nothing hidden."""
    return path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.parts)


def _csv(root: Path, split: str, card: Card) -> list[Sample[int]]:
    table = root / "labels.csv"
    if not table.is_file():
        raise DataError(f"{table}: not found; csv:DIR needs a labels.csv with the columns file and label.")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table in UTF-8 ({error}).") from error
    if not {"file", "label"} <= set(columns):
        raise DataError(f"{table}: the columns are {list(columns)}; file and label are needed.")
    parts: dict[str, list[Sample[int]]] = {"train": [], "val": [], "test": []}
    for line, row in enumerate(rows, 2):
        label, part = (row["label"] or "").strip(), (row.get("split") or "test").strip()
        if not re.fullmatch(r"\d{1,9}", label):
            raise DataError(f"{table}, line {line}: label {row['label']!r} is no class number.")
        if part not in parts:
            raise DataError(f"{table}, line {line}: split {part!r} is none of {', '.join(parts)}.")
        file = root / (row["file"] or "")
        parts[part].append(Sample(file, int(label), str(file)))
    if split == "train" and not parts["train"]:
        raise _no_training(table, "add a column split that says train or test in every row.")
    samples = parts["train"] if split == "train" else parts["test"] or parts["val"]
    if not samples:
        raise DataError(f"{table}: no images to evaluate on; {len(parts['train'])} rows are for training.")
    return samples


def _npz(path: Path, split: str, card: Card) -> list[Sample[int]]:
    keys = [("x_train", "y_train")] if split == "train" else [("images", "labels"), ("x_test", "y_test")]
    try:
        if zipfile.is_zipfile(path):
            _require_declared(path, {f"{key}.npy" for pair in keys for key in pair})
        with path.open("rb") as stream:  # which numpy leaves open where it finds the file damaged
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, no archive of them")
            there = ", ".join(archive.files) or "nothing"
            pair = next((p for p in keys if set(p) <= set(archive.files)), None)
            images, labels = (archive[k] for k in pair) if pair else (None, None)
    except MemoryError:
        raise
    except Exception as error:  # a damaged header, which numpy reads as Python's tokens, ends in any exception there is
        raise DataError(f"{path}: cannot be read as an .npz file of plain arrays ({error}).") from error
    if pair is None and split == "train":
        raise _no_training(path, f"store it as x_train and y_train (there is: {there}).")
    if pair is None or images is None or labels is None:
        raise DataError(f"{path}: holds {there}; images and labels are needed, or x_test and y_test.")
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {pair[0]} are {images.dtype}; uint8 is needed, 0 to 255.")
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[3] in (1, 3):
        images = np.moveaxis(images, 3, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise DataError(f"{path}: {pair[0]} are {shape}; (N, H, W, C), (N, C, H, W) or (N, H, W) is needed, C 1 or 3.")
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{path}: {pair[1]} are {labels.dtype} {labels.shape} for {len(images)} images; an integer each is needed."
        )
    return _samples(images, labels.reshape(-1), f"{path}, image")


def _require_declared(path: Path, names: set[str]) -> None:
    """Hold what an archive says of its arrays against its size, before an array is made. Raises ValueError."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for name, info in entries(archive, capacity(path)).items():
            if name not in names:
                continue
            with archive.open(info) as stream:
                version = np.lib.format.read_magic(stream)
                if version not in headers:
                    raise ValueError(f"{name} is of version {version}")
                shape, _, kind = headers[version](stream)
            if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize > info.file_size:
                raise ValueError(f"{name} says that it is of {shape}, which are not there")


def _samples(images: NDArray[np.uint8], labels: NDArray[Any], where: str) -> list[Sample[int]]:
    return [
        Sample(image, int(label), f"{where} {i}") for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _no_training(place: Path, how: str) -> DataError:
    return DataError(f"{place}: has no training part, and fine-tuning needs images that evaluation does not see; {how}")


DATASETS: dict[str, Layout[int]] = {
    "cifar10": Cifar(
        ("cifar-10-batches-bin", "cifar-10-batches-py"),
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        1,
        b"labels",
    ),
    "cifar100": Cifar(("cifar-100-binary", "cifar-100-python"), ("train",), ("test",), 2, b"fine_labels"),
    "csv": _csv,
    "folder": _folder,
    "npz": _npz,
}
