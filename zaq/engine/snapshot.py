"""Where a run is, in a file, so that another process can go on from there.

A snapshot is a safetensors file: tensors in its body, all else as JSON in its head. Nothing is pickled, and a file can
have nothing called but what stands in KNOWN.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from zaq.compute.processes import is_first, sent
from zaq.config.bits import QConfig
from zaq.config.bounds import json_text, plain_json
from zaq.config.card import Card
from zaq.config.files import write_whole
from zaq.config.memory import at_once
from zaq.engine.store import in_parts
from zaq.errors import ZaqError

__all__ = ["KNOWN", "Content", "Remade", "Snapshots", "Unsaved", "known", "pack", "run_of", "told_in", "unpack"]

KNOWN: dict[str, Callable[..., Any]] = {"Card": Card, "QConfig": QConfig}
KEPT = 2  # the newest, and the one before, for when the newest is damaged
CHUNK = 2**22  # values that are written at a time
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip  # as safetensors calls them
COST = 20  # times what the last one took to write: so much time passes at least before the next

F = TypeVar("F", bound=Callable[..., Any])


class Unsaved(ZaqError):
    """Something that no snapshot can hold."""


def known(function: F) -> F:
    """Let snapshots name a function."""
    KNOWN[_name(function)] = function
    return function


class Remade:
    """A module that a snapshot can hold: it is made anew by the same call, and its state put back."""

    made: tuple[tuple[Any, ...], dict[str, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known(cls)

    def __new__(cls, *args: Any, **named: Any) -> Any:
        one = super().__new__(cls)
        object.__setattr__(one, "made", (args, named))
        return one


def _name(kind: Any) -> str:
    return f"{kind.__module__}:{getattr(kind, '__qualname__', '')}"


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors go into `tensors`, one that stands in two places once.

    Raises Unsaved for what is neither a number, a text, a tensor, a list, a tuple or a dict of these, a Card or
    QConfig, a `Remade`, nor a function in KNOWN.
    """
    return _Packer(tensors).pack(value)


class _Packer:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors, self.keys = tensors, dict[int, str]()

    def pack(self, value: Any) -> Any:
        match value:
            case Tensor():
                return self._tensor(value)
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case list():
                return [self.pack(v) for v in value]
            case tuple():
                return {"tuple": [self.pack(v) for v in value]}
            case Mapping():
                return {"dict": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
            case Card() | QConfig():
                named = {f.name: self.pack(getattr(value, f.name)) for f in dataclasses.fields(value)}
                return {"made": type(value).__name__, "args": [], "named": named}
            case Remade():
                args, named = value.made
                made = {"made": _name(type(value)), "args": self.pack(list(args))}
                state = value.state_dict() if isinstance(value, nn.Module) else {}
                return made | {"named": {k: self.pack(v) for k, v in named.items()}, "state": self.pack(state)}
        if callable(value) and KNOWN.get(_name(value)) is value:
            return {"known": _name(value)}
        raise Unsaved(f"no snapshot can hold a {type(value).__name__}")

    def _tensor(self, value: Tensor) -> dict[str, Any]:
        if id(value) not in self.keys:
            self.keys[id(value)] = str(len(self.tensors))
            self.tensors[self.keys[id(value)]] = value
        return {"tensor": self.keys[id(value)], "stride": list(value.stride())}


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` was given. Raises KeyError, TypeError or ValueError for what `pack` never wrote."""
    match value:
        case list():
            return [unpack(v, tensors) for v in value]
        case {"tensor": key, "stride": stride}:
            return _strided(tensors, key, stride)
        case {"float": text}:
            return float(text)
        case {"tuple": parts}:
            return tuple(unpack(v, tensors) for v in parts)
        case {"dict": pairs}:
            return {unpack(k, tensors): unpack(v, tensors) for k, v in pairs}
        case {"known": name}:
            return KNOWN[name]
        case {"made": name, "args": args, "named": named}:
            one = KNOWN[name](*unpack(args, tensors), **{k: unpack(v, tensors) for k, v in named.items()})
            if "state" in value and isinstance(one, nn.Module):
                one.load_state_dict(unpack(value["state"], tensors))
            return one
    return value


def _strided(tensors: dict[str, Tensor], key: str, stride: list[int]) -> Tensor:
    """A tensor with its values in the order they lay in: kernels go by it, down to the last bit."""
    found = tensors[key]
    extent = 1 + sum((size - 1) * step for size, step in zip(found.shape, stride, strict=True))
    if list(found.stride()) != stride and extent == found.numel():
        tensors[key] = torch.empty_strided(found.shape, stride, dtype=found.dtype).copy_(found)
    return tensors[key]


class Content:
    """A safetensors file of values by name, as chunks of bytes: safetensors' own writer wants all of it at once, three
    times over. Raises Unsaved for what `pack` cannot hold.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        tensors: dict[str, Tensor] = {}
        head: dict[str, Any] = {"__metadata__": {n: json_text(pack(value, tensors)) for n, value in told.items()}}
        order = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # so that all lie aligned
        self.tensors, at = [t.detach() for _, t in order], 0
        for key, t in order:
            end = at + t.numel() * t.element_size()
            head[key] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, end]}
            at = end
        text = json_text(head).encode()
        text += b" " * (-len(text) % 8)
        self.head = len(text).to_bytes(8, "little") + text

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self.head
        for t in self.tensors:
            rows = t if t.dim() else t[None]
            for part in in_parts(rows, at_once(CHUNK, rows.shape[1:])):
                yield memoryview(part.cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]

    def digest(self) -> str:
        """The start of the SHA-256 of all of it."""
        found = hashlib.sha256()
        for chunk in self:
            found.update(chunk)
        return found.hexdigest()[:32]


def told_in(content: bytes, *names: str, tensors: bool = True) -> dict[str, Any] | None:
    """Values out of such a file, by name; without `tensors`, those that hold none. None if it is damaged."""
    try:
        length = int.from_bytes(content[:8], "little")
        head = plain_json(content[8 : 8 + length])["__metadata__"]
        body = load(content) if tensors else {}
        return {name: unpack(plain_json(head[name]), body) for name in names}
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, ZaqError):
        return None


class Snapshots:
    """The snapshots of one run, in a folder of their own: `snapshot-NUMBER-HASH.safetensors`, the newest two.

    Args:
        folder: is made when the first one is written.
        run: says which run this is; snapshots of another one are left alone.
        every: seconds between two of them inside a stage; there is one behind each stage, too. In both cases no
            sooner than so much time has passed that writing them takes a twentieth of it.
        say: is told what was found damaged, and from where on nothing can be saved.
        call: is kept with them, and not looked at.
    """

    def __init__(
        self,
        folder: Path,
        run: dict[str, Any],
        every: float = 60.0,
        say: Callable[[str], object] = lambda text: None,
        call: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.run, self.every, self.say, self.call = folder, run, every, say, call or {}
        self.before = 0.0  # seconds that the run had taken when the snapshot that was read was written
        self._started = self._last = time.monotonic()
        self._cost, self._number, self.stopped = 0.0, 0, False
        self._pending: Callable[[], Any] | None = None

    @property
    def seconds(self) -> float:
        """What the run has taken until now, in all processes."""
        return self.before + time.monotonic() - self._started

    def begin_anew(self) -> "Snapshots":
        """Remove those that are there; none of them is gone on from."""
        for _, path in self.there():
            path.unlink(missing_ok=True)
        return self

    def offer(self, make: Callable[[], Any], stage_ended: bool = False) -> None:
        """Take note of where the run is, as what `make` returns, and write it if it is time to."""
        if self.stopped or not is_first():
            return
        self._pending = make
        wait = max(0.0 if stage_ended else self.every, COST * self._cost)
        if time.monotonic() - self._last >= wait:
            self.flush()

    def flush(self) -> None:
        """Write what was offered last."""
        make, self._pending = self._pending, None
        if make is None:
            return
        began = time.monotonic()
        try:
            content = Content({"run": self.run, "call": self.call, "seconds": self.seconds, "found": make()})
        except Unsaved as error:
            self.stop(error)
            return
        try:
            self._write(content)
        except OSError as error:  # the run itself is well
            self.say(f"{self.folder}: no snapshot could be written ({error.strerror or error}); the run goes on")
        self._last = time.monotonic()
        self._cost = self._last - began

    def stop(self, why: Unsaved | None = None) -> None:
        """Write no more."""
        self.stopped, self._pending = True, None
        if why:
            self.say(f"{why}: what comes behind the last snapshot would have to be done again")

    def _write(self, content: Content) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        there = self.there()
        self._number = max([self._number, *(number for number, _ in there)]) + 1
        write_whole(self.folder / f"snapshot-{self._number:06d}-{content.digest()}.safetensors", content)
        for _, path in there[KEPT - 1 :]:
            path.unlink(missing_ok=True)

    def there(self) -> list[tuple[int, Path]]:
        """The snapshots by number, the newest first."""
        paths = self.folder.glob("snapshot-*-*.safetensors") if self.folder.is_dir() else ()
        numbered = [(p.name.split("-")[1], p) for p in paths if p.is_file() and not p.is_symlink()]
        return sorted(((int(number), p) for number, p in numbered if number.isdecimal()), reverse=True)

    def newest(self) -> Any:
        """The newest that is whole and of this run; None where there is none. The first of several processes reads it
        for all.
        """
        return sent(self._newest() if is_first() else None)

    def _newest(self) -> Any:
        for number, path in self.there():
            told = self.read(path, "run", "seconds", "found")
            if told is None:
                self.say(f"{path}: is damaged; the one before is taken")
            elif told["run"] != self.run:
                self.say(f"{path}: is of another run; the one before is taken")
            else:
                self.before, self._number = told["seconds"], number
                return told["found"]
        return None

    def read(self, path: Path, *names: str) -> dict[str, Any] | None:
        """Parts of what a snapshot holds; None where its name does not say the hash of what is in it."""
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:32] != path.stem.split("-")[2]:
            return None
        return told_in(content, *names, tensors="found" in names)  # nothing else holds any


def run_of(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The `run` and the `call` of the newest whole snapshot in a folder; None where there is none."""
    found = Snapshots(folder, {})
    told = next((told for _, path in found.there() if (told := found.read(path, "run", "call")) is not None), None)
    return (told["run"], told["call"]) if told else None
