"""Names of classes in a file."""

from pathlib import Path

import pytest

from zaq.config.labels import labels_text, read_labels
from zaq.errors import SourceError


@pytest.mark.parametrize(
    "text",
    [
        "tabby cat\ndog\n",
        "tabby cat\r\n dog \r\n\r\n",
        '["tabby cat", "dog"]',
        '{"1": "dog", "0": "tabby cat"}',
        '{"0": ["n02123045", "tabby cat"], "1": ["n02084071", "dog"]}',
    ],
)
def test_every_form_reads_alike(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(text.encode())
    assert read_labels(path) == ("tabby cat", "dog")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    names = ("tabby cat", "chien à poil", "two\nlines")
    (tmp_path / "labels.txt").write_text(labels_text(names), encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == (*names[:2], "two lines")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "it is empty"),
        (b" \n\n", "it is empty"),
        (b"cat\n\ndog", "class 1 has no name"),
        (b"[]", "it names no class"),
        (b"{}", "it names no class"),
        (b'["cat", 3]', "3 is no name"),
        (b'["cat", ""]', "class 1 has no name"),
        (b'{"1": "cat", "2": "dog"}', "none for class 0"),
        (b'["cat",', "Expecting value"),
        (b"\x89PNG\r\n\x1a\n\x00", "not in UTF-8"),
        (b"PK\x03\x04\x00\x00", "it is no text"),
    ],
)
def test_what_is_no_list_of_names_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(SourceError, match="a name a line is expected") as caught:
        read_labels(tmp_path / "labels.txt")
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        read_labels(tmp_path / "nothing.txt")
