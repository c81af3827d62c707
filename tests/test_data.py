"""Data sets as people have them: read right, or refused with the path."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zaq.config import Card
from zaq.data import batches
from zaq.errors import DataError

CARD = Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, classes=10)


def records(n: int, heads: int) -> np.ndarray:
    raw = np.random.default_rng(0).integers(0, 256, (n, 3072 + heads)).astype(np.uint8)
    raw[:, heads - 1] = np.arange(n) % 10
    return raw


@pytest.mark.parametrize(("kind", "folder", "file", "heads"), [
    ("cifar10", "cifar-10-batches-bin", "test_batch.bin", 1), ("cifar100", "cifar-100-binary", "test.bin", 2)])  # fmt: skip
@pytest.mark.parametrize("nested", [True, False])
def test_cifar(kind: str, folder: str, file: str, heads: int, nested: bool, tmp_path: Path) -> None:
    root = tmp_path / folder
    root.mkdir()
    raw = records(25, heads)
    raw.tofile(root / file)
    found = list(batches(f"{kind}:{tmp_path if nested else root}", CARD, size=10))
    assert [len(y) for _, y in found] == [10, 10, 5]
    expected = (torch.from_numpy(raw[3, heads:].reshape(3, 32, 32).astype(np.float32)) / 255 - 0.5) / 0.25
    torch.testing.assert_close(found[0][0][3], expected)
    assert torch.cat([y for _, y in found]).tolist() == (np.arange(25) % 10).tolist()
    assert sum(len(y) for _, y in batches(f"{kind}:{tmp_path}" if nested else f"{kind}:{root}", CARD, limit=7)) == 7


def test_csv_resizes_and_crops(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label,author\na.png,3,me\n")
    ((images, labels),) = batches(f"csv:{tmp_path}", CARD)
    assert images.shape == (1, 3, 32, 32) and labels.tolist() == [3]
    assert images[0, 0, 16, 2] == -2 and images[0, 0, 16, 29] == 2  # the whole width, squeezed
    ((images, _),) = batches(f"csv:{tmp_path}", CARD.override(resize=64, crop=32))
    assert images.shape == (1, 3, 32, 32) and (images[0, 0, :, :14] == -2).all() and (images[0, 0, :, 18:] == 2).all()


def write(folder: Path, rows: list[list[str]]) -> str:
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"no image")
    return f"csv:{folder}"


@pytest.mark.parametrize(("rows", "message"), [
    ([["file", "label"], ["a.png", "10"]], r"a\.png: label 10 is outside 0\.\.9"),
    ([["file", "label"], ["a.png", "cat"]], r"labels\.csv, line 2: label 'cat'"),
    ([["file", "label"], ["gone.png", "1"]], r"gone\.png: not found"),
    ([["file", "label"], ["broken.png", "1"]], r"broken\.png: cannot be read"),
    ([["name", "class"]], r"labels\.csv: the columns are")])  # fmt: skip
def test_bad_tables_are_named(rows: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list(batches(write(tmp_path, rows), CARD))


def test_bad_specs_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(b"123")
    cases = [
        ("cifar10", "kind:PATH"),
        ("cifra10:/", "Did you mean 'cifar10'"),
        (f"cifar10:{tmp_path}/no", "does not exist"),
        (f"cifar10:{tmp_path}", "whole number of 3073-byte records"),
        (f"cifar100:{tmp_path}", "not found"),
        (f"csv:{tmp_path}", "labels.csv"),
    ]
    for spec, message in cases:
        with pytest.raises(DataError, match=message):
            list(batches(spec, CARD))
    with pytest.raises(DataError, match="normalisation is unknown"):
        list(batches(f"cifar10:{tmp_path}", Card(input=(3, 32, 32))))
