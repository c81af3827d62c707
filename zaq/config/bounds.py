"""What a reader may take of a file that one was sent, and how JSON is read and written. Sizes that a file declares are
held against it before anything is read, so that four megabytes never become four gigabytes.
"""

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["ELEMENTS", "capacity", "entries", "json_parts", "json_text", "plain_json", "plain_text"]

MOST, RATIO, SPARE = 2**33, 100, 2**28  # bytes; an archive unpacks to 8 GiB, and to 100 times its size and 256 MiB
TEXT = 2**27  # bytes of one text; JSON takes some twenty times that as objects
DEPTH = 100  # of JSON; a graph that torch.export writes has twenty
ELEMENTS = 2**30  # of one tensor, for one image: sixteen times what a network at 4K has


def capacity(path: Path) -> int:
    """The bytes that what a file holds may take once it is unpacked."""
    return min(MOST, RATIO * path.stat().st_size + SPARE)


def entries(archive: zipfile.ZipFile, most: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of an archive by name, none of them read yet.

    Raises ValueError for names that two readers could understand in two ways (absolute, with `..`, or equal but for
    case), and where together they would unpack to more than `most` bytes: no reader takes more of an entry than it
    declares.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        lower = info.filename.lower()
        if lower in found:
            raise ValueError(f"two entries are called {found[lower].filename!r}, but for case")
        if lower.startswith("/") or "\\" in lower or "\0" in info.orig_filename or ".." in lower.split("/"):
            raise ValueError(f"the entry {info.filename!r} leads out of the archive")
        found[lower] = info
    size = sum(info.file_size for info in found.values())
    if size > most:
        raise ValueError(f"it would unpack to {size / 2**20:.0f} MiB, more than the {most / 2**20:.0f} that are taken")
    return {info.filename: info for info in found.values()}


def plain_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises ValueError, saying why, for what is no such file or cannot be read."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no plain file")
    try:
        with path.open("rb") as stream:
            content = stream.read(TEXT + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if len(content) > TEXT:
        raise ValueError(f"it is longer than the {TEXT / 2**20:.0f} MiB of text that are taken")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not in UTF-8; save it in that encoding") from error


def json_text(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """A value as JSON. JSON knows no NaN and no infinity: a number that is none becomes null, wherever it stands."""
    return json.dumps(_finite(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for one that is none, or too long, or nested too deep to walk."""
    if len(text) > TEXT:
        raise ValueError(f"{len(text) / 2**20:.0f} MiB of JSON, more than the {TEXT / 2**20:.0f} that are taken")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if any(depth > DEPTH for depth, _, _ in json_parts(value)):
        raise ValueError(f"nested more than {DEPTH} deep")
    return value


def json_parts(value: Any) -> Iterator[tuple[int, str, Any]]:
    """Every value inside a JSON value: its depth, the key that it or its list stands under, and itself."""
    left: list[tuple[int, str, Any]] = [(0, "", value)]
    while left:
        depth, key, part = left.pop()
        yield depth, key, part
        inner = part.items() if isinstance(part, dict) else ((key, v) for v in part) if isinstance(part, list) else ()
        left += [(depth + 1, k, v) for k, v in inner]
