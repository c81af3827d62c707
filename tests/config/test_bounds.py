"""What is taken of a file that declares more than it holds."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from zaq.config.bounds import DEPTH, MOST, SPARE, TEXT, capacity, entries, plain_json


def archive(*names: str, size: int = 1) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name in names:
            made.writestr(name, bytes(size))
    return zipfile.ZipFile(stream)


def test_capacity_grows_with_the_file_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    assert capacity(path) == SPARE + 100_000
    os.truncate(path, 2**30)  # with a hole in it: nothing is on the disk
    assert capacity(path) == MOST


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/b", "A/b"), "two entries are called 'a/b', but for case"),
        (("/a",), "leads out of the archive"),
        (("a/../../b",), "leads out of the archive"),
        (("a\\b",), "leads out of the archive"),
        (("a", "b"), "it would unpack to 2 MiB, more than the 1 that are taken"),
    ],
)
def test_archives_that_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entries(archive(*names, size=2**20), 2**20)


def test_an_archive_that_fits() -> None:
    assert list(entries(archive("a/b", "a..b", size=2**20), 2**21)) == ["a/b", "a..b"]


def test_json_is_bounded_in_depth_and_length() -> None:
    assert plain_json("[" * DEPTH + "]" * DEPTH) and plain_json(b'{"a": 1}') == {"a": 1}
    for text in ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), '{"a":' * 200_000):
        with pytest.raises(ValueError, match="nested"):
            plain_json(text)
    with pytest.raises(ValueError, match="128 MiB of JSON, more than the 128"):
        plain_json(b" " * (TEXT + 1))
