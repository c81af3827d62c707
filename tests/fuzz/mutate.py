"""Damage as files suffer it, and as somebody does it on purpose: bytes, values inside JSON, entries of archives, words.

Everything is drawn from a `random.Random`, so that a seed names a case.
"""

import io
import json
import random
import zipfile
from typing import Any

NASTY_BYTES = (b"\x00", b"\xff", b"\x80\x00\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\n", b"../", b"PK\x03\x04")
NASTY_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, float("nan"), float("inf"), "", "a",
    "../../x", "\x00", "²", "é", "a" * 5000, [], {}, [[]], [None], {"": 0}, [1] * 300, "nan", "os:system",
    "/etc/passwd",
)  # fmt: skip
NASTY_WORDS = (
    "", "0", "-1", "1e999", "nan", "inf", "²", "٤", "1_0", "0x10", "9" * 400, "9" * 5000, "w", "a", "é", "\x00", "None",
    "true", ",", "=", ".", ":", "[", "]", "%s", "{}", "../..", " ", "-", "+", "1/0", "99999999999999999999",
)  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are others, are gone, are there twice, or end early; one time in four almost all of them."""
    found = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(found)), rng.choice((1, 1, 2, 8, 64, 1024))
        kind = rng.randrange(6)
        if kind == 0:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[at : at + length] = rng.randbytes(min(length, len(found) - at))
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length]
        elif kind == 4:
            found[at : at + 1] = rng.choice(NASTY_BYTES)
        elif rng.random() < 0.3:
            del found[at:]
        if not found:
            return b""
    return bytes(found)


def other_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON text of which some values are others, are gone, or lie deeper; still JSON (with NaN, as Python has it)."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = [(p, k) for p in _containers(value) for k in (p if isinstance(p, dict) else range(len(p)))]
        if not places:
            return json.dumps(rng.choice(NASTY_VALUES)).encode()
        parent, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = [parent[key]]
        elif kind == 2:
            other, there = rng.choice(places)
            parent[key] = json.loads(json.dumps(other[there])) if there in _keys(other) else None
        elif kind == 3 and isinstance(parent, dict):
            parent[str(rng.choice(NASTY_VALUES))] = parent.pop(key)
        else:
            parent[key] = rng.choice(NASTY_VALUES)
    return json.dumps(value).encode()


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def _containers(value: Any) -> list[Any]:
    found, left = [], [value]
    while left:
        part = left.pop()
        if isinstance(part, dict | list):
            found.append(part)
            left += part.values() if isinstance(part, dict) else part
    return found


def other_archive(content: bytes, rng: random.Random) -> bytes:
    """An archive made anew, with right checksums, of entries one of which is damaged, or called something else."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {i.filename: archive.read(i) for i in archive.infolist()}
    name = rng.choice(list(parts))
    kind = rng.randrange(8)
    if kind == 0:
        del parts[name]
    elif kind == 1:
        parts[damaged(name.encode(), rng).decode("latin-1")] = parts.pop(name)
    elif kind < 5 and parts[name][:1] in (b"{", b"["):
        parts[name] = other_json(parts[name], rng)
    else:
        parts[name] = damaged(parts[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, value in parts.items():
            archive.writestr(key.partition("\0")[0] or "x", value)  # zipfile ends a name there
    return stream.getvalue()


def other_text(text: str, rng: random.Random) -> str:
    """A text in which a word, or a piece of one, is another."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        end = min(at + rng.choice((0, 1, 1, 2, 5)), len(text))
        text = text[:at] + rng.choice(NASTY_WORDS) + text[end:]
    return text
