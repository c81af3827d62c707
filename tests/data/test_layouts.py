"""Data sets as people have them: read right, or refused with the path."""

import csv
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from zaq.config.card import Card
from zaq.data import BOXES, batches, classified, count, listed, shuffled
from zaq.errors import DataError

CARD = Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, classes=10)


def records(n: int, heads: int) -> np.ndarray:
    raw = np.random.default_rng(0).integers(0, 256, (n, 3072 + heads)).astype(np.uint8)
    raw[:, heads - 1] = np.arange(n) % 10
    return raw


@pytest.mark.parametrize(
    ("kind", "folder", "file", "heads"),
    [("cifar10", "cifar-10-batches-bin", "test_batch.bin", 1), ("cifar100", "cifar-100-binary", "test.bin", 2)],
)
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


class Python2(pickle._Pickler):
    """Pickles as Python 2 did, which had bytes alone and numpy under its old names."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_bytes


def write_python(path: Path, **found: object) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        Python2(stream, 2).dump({k.encode(): v for k, v in found.items()})
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.mark.parametrize(
    ("kind", "folder", "file", "key"),
    [
        ("cifar10", "cifar-10-batches-py", "test_batch", "labels"),
        ("cifar100", "cifar-100-python", "test", "fine_labels"),
    ],
)
def test_cifar_as_python_pickled_it(kind: str, folder: str, file: str, key: str, tmp_path: Path) -> None:
    raw = records(12, 1)
    write_python(tmp_path / folder / file, data=raw[:, 1:], coarse_labels=[0] * 12, **{key: raw[:, 0].tolist()})
    assert b"numpy.core.multiarray" in (tmp_path / folder / file).read_bytes()
    binary = tmp_path / "binary"
    binary.mkdir()
    raw.tofile(binary / "test_batch.bin")
    ((expected, labels),) = batches(f"cifar10:{binary}", CARD)
    for place in (tmp_path, tmp_path / folder):
        ((images, found),) = batches(f"{kind}:{place}", CARD)
        assert torch.equal(images, expected) and torch.equal(found, labels)
    assert count(f"{kind}:{tmp_path}", CARD) == 12
    write_python(tmp_path / folder / file, data=raw[:, 2:], **{key: raw[:, 0].tolist()})
    refused(f"{kind}:{tmp_path}", rf"{file}: data of \(12, 3071\) for 12 labels")
    write_python(tmp_path / folder / file, data=raw[:, 1:].astype(np.float32), **{key: raw[:, 0].tolist()})
    refused(f"{kind}:{tmp_path}", rf"{file}: is not CIFAR's python layout .*not u1")
    write_python(tmp_path / folder / file, data=raw[:, 1:])
    refused(f"{kind}:{tmp_path}", rf"{file}: is not CIFAR's python layout \(KeyError")
    (tmp_path / folder / file).write_bytes(b"junk")
    refused(f"{kind}:{tmp_path}", rf"{file}: is not CIFAR's python layout")


def refused(spec: str, message: str, split: str = "test", card: Card = CARD) -> None:
    with pytest.raises(DataError, match=message):
        list(batches(spec, card, split=split))


class Malicious:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.place,)


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Malicious(tmp_path / "owned"), b"labels": [0]}))
    refused(
        f"cifar10:{tmp_path}", r"test_batch: this pickle wants (builtins\.getattr|pathlib\S+), which no CIFAR file does"
    )
    for code in (b"cos\nsystem\n", b"cnumpy\nload\n", b"cnumpy\nndarray.tofile\n"):
        (tmp_path / "test_batch").write_bytes(code + b"(S'" + bytes(tmp_path / "owned") + b"'\ntR.")
        refused(f"cifar10:{tmp_path}", "this pickle wants .* refused, not run")
    assert not (tmp_path / "owned").exists()


def test_the_training_part_of_cifar(tmp_path: Path) -> None:
    records(5, 1).tofile(tmp_path / "test_batch.bin")
    refused(
        f"cifar10:{tmp_path}",
        "no training part, and fine-tuning needs images that evaluation does not see; put data_batch_1",
        "train",
    )
    for i in range(1, 6):
        refused(f"cifar10:{tmp_path}", "training part" if i == 1 else rf"data_batch_{i}\.bin.*: not found", "train")
        records(i, 1).tofile(tmp_path / f"data_batch_{i}.bin")
    assert count(f"cifar10:{tmp_path}", CARD, "train") == 15 and count(f"cifar10:{tmp_path}", CARD) == 5


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), grey, np.uint8)).save(path)


TWO = CARD.override(classes=2)


def test_a_folder_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png", 0)
    picture(tmp_path / "dog" / "deep" / "b.JPG", 255)
    for junk in ("cat/._a.png", "cat/.thumbs/a.png", "cat/notes.txt", ".git/a.png", "README"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_text("junk")
    ((images, labels),) = batches(f"folder:{tmp_path}", TWO)
    assert labels.tolist() == [0, 1] and (images[0] == -2).all() and (images[1] == 2).all()
    refused(f"folder:{tmp_path}", "2 class folders for a model of 10 classes")
    refused(f"folder:{tmp_path}", r"no training part.*into train/ and those of the other into val/", "train", TWO)
    (tmp_path / "cat" / "broken.png").write_text("no image")
    refused(f"folder:{tmp_path}", r"cat/broken\.png: cannot be read", card=TWO)


def test_parts_of_a_folder_share_their_classes(tmp_path: Path) -> None:
    for place in ("train/cat/a.png", "train/dog/a.png", "val/dog/b.png"):
        picture(tmp_path / place, 9)
    spec = f"folder:{tmp_path}"
    assert [y.tolist() for _, y in batches(spec, TWO)] == [[1]] and [
        y.tolist() for _, y in batches(spec, TWO, split="train")
    ] == [[0, 1]]
    picture(tmp_path / "test/cat/c.png", 9)
    assert [y.tolist() for _, y in batches(spec, TWO)] == [[0]]  # test before val
    picture(tmp_path / "only" / "train/cat/a.png", 9)
    refused(f"{spec}/only", "holds train but neither test nor val")


def test_folders_named_by_number_are_labels(tmp_path: Path) -> None:
    picture(tmp_path / "10" / "a.png", 9)
    picture(tmp_path / "9" / "a.png", 9)
    refused(f"folder:{tmp_path}", r"10/a\.png: label 10 is outside 0\.\.9")
    ((_, labels),) = batches(f"folder:{tmp_path}", CARD.override(classes=1000))
    assert labels.tolist() == [10, 9]


def test_empty_folders(tmp_path: Path) -> None:
    refused(f"folder:{tmp_path}", "holds no folders; folder:DIR needs one folder a class")
    (tmp_path / "3").mkdir()
    refused(f"folder:{tmp_path}", "no images in its class folders")


def grey(n: int, *shape: int) -> np.ndarray:
    return (np.arange(n, dtype=np.uint8) * 20).reshape(n, *[1] * len(shape)) * np.ones(shape, np.uint8)


@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32), (32, 32), (32, 32, 1), (16, 16, 3)])
@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x_test", "y_test")])
def test_npz(shape: tuple[int, ...], images: str, labels: str, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", **{images: grey(5, *shape), labels: np.arange(5)[:, None]}
    )  # keras keeps labels in a column
    ((found, classes),) = batches(f"npz:{tmp_path / 'a.npz'}", CARD)
    assert found.shape == (5, 3, 32, 32) and classes.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(found[2], torch.full((3, 32, 32), (40 / 255 - 0.5) / 0.25))
    ((found, _),) = batches(f"npz:{tmp_path / 'a.npz'}", Card(input=(1, 28, 28), mean=(0.0,), std=(1.0,)))
    assert found.shape == (5, 1, 28, 28)
    refused(
        f"npz:{tmp_path / 'a.npz'}",
        rf"a\.npz: has no training part.* x_train and y_train \(there is: {images}",
        "train",
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": grey(2, 8, 8)}, "holds data; images and labels are needed"),
        ({"images": grey(2, 8, 8) / 255, "labels": np.arange(2)}, "images are float64; uint8 is needed"),
        ({"images": grey(2, 8, 8, 4), "labels": np.arange(2)}, r"images are \(2, 8, 8, 4\); \(N, H, W, C\)"),
        ({"images": grey(2, 8, 8, 3), "labels": np.arange(3)}, r"labels are int64 \(3,\) for 2 images"),
        ({"images": grey(2, 8, 8, 3), "labels": np.eye(2)}, r"labels are float64 \(2, 2\) for 2 images"),
        ({"images": grey(2, 8, 8, 3), "labels": np.array([0, 10])}, r"a\.npz, image 1: label 10 is outside 0\.\.9"),
        ({"images": grey(2, 8, 8, 3), "labels": np.array([0, -1])}, r"a\.npz, image 1: label -1 is outside 0\.\.9"),
        ({"images": grey(2, 8, 8, 3), "labels": np.array([Malicious(Path("owned")), 0])}, "plain arrays"),
        ({"images": np.uint8(3), "labels": np.arange(2)}, r"images are \(\)"),
    ],
)
def test_bad_npz_files_are_named(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refused(f"npz:{tmp_path / 'a.npz'}", message)


def test_other_files_are_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "junk.npz").write_bytes(b"PK junk")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("a.npy", "junk.npz", "empty.npz"):
        refused(f"npz:{tmp_path / name}", f"{name}: cannot be read as an .npz file")
        refused(f"cifar10:{tmp_path / name}", f"{name} is a file; cifar10 needs a folder")


def test_an_npz_whose_header_is_damaged(tmp_path: Path) -> None:
    """numpy reads headers as tokens of Python, whose errors are of many kinds."""
    for broken in (b"{'descr': '|u1', (", b"{'descr': (((", b"\x00\x00", b"[]", b"{'descr': 3}"):
        header = b"\x93NUMPY\x01\x00" + len(broken).to_bytes(2, "little") + broken
        with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
            archive.writestr("images.npy", header)
            archive.writestr("labels.npy", header)
        with pytest.raises(DataError, match=r"set\.npz: cannot be read as an \.npz file"):
            list(batches(f"npz:{tmp_path / 'set.npz'}", CARD))


def test_labels_and_names_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_bytes("0 0.5 0.5 0.1 0.1 caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: cannot be read as text \(line 1 is not in UTF-8"):
        listed(f"yolo:{tmp_path}", CARD, BOXES)
    (tmp_path / "classes.txt").write_bytes("caf\u00e9\nbar".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read as text \(line 1 is not in UTF-8"):
        listed(f"yolo:{tmp_path}", CARD, BOXES)


def test_an_npz_that_is_a_bomb(tmp_path: Path) -> None:
    """Arrays that compress a thousandfold, and one that says more than is there: nothing is read of either."""
    for name, arrays in (
        ("wide", np.zeros((100_000, 64, 64, 1), np.uint8)),
        ("false", np.zeros((4, 8, 8, 1), np.uint8)),
    ):
        np.savez_compressed(tmp_path / f"{name}.npz", images=arrays, labels=np.zeros(len(arrays), np.int64))
    content = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "false.npz") as old, zipfile.ZipFile(content, "w") as new:
        for item in old.namelist():
            new.writestr(
                item, old.read(item).replace(b"(4, 8, 8, 1)", b"(4, 8, 8, 99999999999)").replace(b" " * 10, b"", 1)
            )
    (tmp_path / "false.npz").write_bytes(content.getvalue())
    refused(f"npz:{tmp_path / 'wide.npz'}", r"wide\.npz: .*would unpack to 39\d MiB, more than the")
    refused(f"npz:{tmp_path / 'false.npz'}", r"false\.npz: .*says that it is of \(4, 8, 8, 99999999999\)")


def test_an_image_that_is_a_program(tmp_path: Path) -> None:
    """PIL tells a file by its content, and hands PostScript to Ghostscript."""
    write(tmp_path, [["file", "label"], ["b.png", "1"]])
    (tmp_path / "b.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(marker) (w) file\n"
    )
    refused(f"csv:{tmp_path}", r"b\.png: cannot be read as an image \(cannot identify")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path, [["file", "label"], ["pipe.png", "1"]])
    refused(f"csv:{tmp_path}", r"pipe\.png: is no plain file")
    os.mkfifo(tmp_path / "pipe.npz")
    refused(f"npz:{tmp_path / 'pipe.npz'}", r"neither a folder nor a plain file")


def moving(
    images: np.ndarray, tmp_path: Path, size: int, side: int, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(len(images)))
    return shuffled(
        f"npz:{tmp_path / 'a.npz'}", Card(input=(3, side, side), mean=(0.0,) * 3, std=(1.0,) * 3), size, seed
    )


def test_shuffled_goes_on_and_repeats_with_its_seed(tmp_path: Path) -> None:
    images = grey(10, 8, 8, 3)
    found = list(islice(moving(images, tmp_path, 4, 8), 6))
    assert all(x.shape == (4, 3, 8, 8) and x.dtype == torch.float32 and x.max() <= 1 for x, _ in found)
    for first in (0, 2, 4):  # each round is one order, without the two that are left over
        assert len(set(torch.cat([y for _, y in found[first : first + 2]]).tolist())) == 8
    again, other = (
        list(islice(moving(images, tmp_path, 4, 8), 6)),
        list(islice(moving(images, tmp_path, 4, 8, seed=1), 6)),
    )
    assert all(torch.equal(a, b) and torch.equal(u, v) for (a, u), (b, v) in zip(found, again, strict=True))
    assert any(not torch.equal(u, v) for (_, u), (_, v) in zip(found, other, strict=True))
    assert len(next(moving(images, tmp_path, 64, 8))[1]) == 10  # fewer than a batch


@pytest.mark.parametrize("side", [8, 80])
def test_images_are_mirrored_and_small_ones_moved(side: int, tmp_path: Path) -> None:
    """A picture whose left half is bright, mirrored, and where it is small moved by up to four pixels: these and no
    others.
    """
    pixels = np.zeros((64, side, side, 3), np.uint8)
    pixels[:, :, : side // 2] = 255
    whole = torch.from_numpy(pixels[0]).permute(2, 0, 1) / 255
    places = [whole, whole.flip(2)]
    if side == 8:
        padded = [F.pad(p, (4,) * 4) for p in places]
        places = [p[:, top : top + 8, left : left + 8] for p in padded for top in range(9) for left in range(9)]
    images, _ = next(moving(pixels, tmp_path, 64, side))
    found = [[i for i, p in enumerate(places) if torch.equal(x, p)] for x in images]
    assert all(found) and len({f[0] for f in found}) >= (30 if side == 8 else 2)


def test_shuffled_reads_files_once(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "train" / str(i) / "a.png", i)
    stream = shuffled(f"folder:{tmp_path}", CARD, 4, 0)
    next(stream)
    for i in range(4):
        (tmp_path / "train" / str(i) / "a.png").unlink()
    assert sorted(next(stream)[1].tolist()) == [0, 1, 2, 3]


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


def test_csv_parts(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, 9)
    spec, table = f"csv:{tmp_path}", tmp_path / "labels.csv"
    table.write_text("file,label,split\na.png,3,train\nb.png,4,test\n")
    assert [y.tolist() for _, y in batches(spec, CARD)] == [[4]] and [
        y.tolist() for _, y in batches(spec, CARD, split="train")
    ] == [[3]]
    table.write_text("file,label,split\na.png,3,train\nb.png,4,tset\n")
    refused(spec, r"labels\.csv, line 3: split 'tset' is none of train, val, test")
    table.write_text("file,label,split\na.png,3,train\n")
    refused(spec, "no images to evaluate on; 1 rows are for training")
    table.write_text("file,label\na.png,3\n")
    refused(spec, r"labels\.csv: has no training part.*column split", "train")
    table.write_bytes("file,label\nä.png,3\n".encode("latin-1"))
    refused(spec, r"labels\.csv: cannot be read as a table in UTF-8")


def test_crops_that_do_not_fit(tmp_path: Path) -> None:
    picture(tmp_path / "3" / "a.png", 9)
    refused(f"folder:{tmp_path}", "cropped to 24, the model takes 32 x 32", card=CARD.override(crop=24))
    refused(
        f"folder:{tmp_path}",
        r"a\.png: resized to 30 x 30, less than the model's 32 x 32",
        card=CARD.override(resize=30, crop=32),
    )


def write(folder: Path, rows: list[list[str]]) -> str:
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"no image")
    return f"csv:{folder}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "label"], ["a.png", "10"]], r"a\.png: label 10 is outside 0\.\.9"),
        ([["file", "label"], ["a.png", "cat"]], r"labels\.csv, line 2: label 'cat'"),
        ([["file", "label"], ["a.png", "9" * 5000]], r"labels\.csv, line 2: label '999"),
        ([["file", "label"], ["gone.png", "1"]], r"gone\.png: not found"),
        ([["file", "label"], ["broken.png", "1"]], r"broken\.png: cannot be read"),
        ([["name", "class"]], r"labels\.csv: the columns are"),
    ],
)
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
        (f"foldr:{tmp_path}", "Did you mean 'folder'"),
    ]
    for spec, message in cases:
        with pytest.raises(DataError, match=message):
            list(batches(spec, CARD))
    with pytest.raises(DataError, match="normalisation is unknown"):
        list(batches(f"cifar10:{tmp_path}", Card(input=(3, 32, 32))))


def test_folders_called_after_the_classes_of_a_model(tmp_path: Path) -> None:
    """In whatever order, by any of a class's names; a name of two classes says nothing."""
    for name in ("Great_White", "tinca tinca"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name / "one.png")
    names = ("tench, Tinca tinca", "crane", "great white", "crane")
    card = Card(input=(3, 4, 4), mean=(0.5,) * 3, std=(0.25,) * 3, classes=4, class_names=names)
    assert [s.label for s in classified(f"folder:{tmp_path}", card)] == [2, 0]
    (tmp_path / "tinca tinca").rename(tmp_path / "crane")
    with pytest.raises(DataError, match="2 class folders for a model of 4 classes"):
        classified(f"folder:{tmp_path}", card)
