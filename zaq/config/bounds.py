"""What a reader may take of a file that one was sent. Sizes that a file declares are held against it before anything is
read, so that four megabytes never become four gigabytes.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["ELEMENTS", "capacity", "entries", "json_parts", "plain_json"]

MOST, RATIO, SPARE = 2**33, 100, 2**28  # bytes; an archive unpacks to 8 GiB, and to 100 times its size and 256 MiB
TEXT = 2**27  # bytes of one JSON text, which takes some twenty times that as objects
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
