"""The run directory: what one quantization leaves on disk, and how it is read again.

model.onnx            the integer file
frame.onnx            what stands around the network in it, where its source has such
quantized.pt2         the student, with its quantizers (torch.export)
teacher.pt2           the float network it was made from, to be compared with
options.json          everything resolved, so that the run can be repeated
log.jsonl             losses, step by step
samples.safetensors   synthetic samples, as 8-bit pixels, for `zaq verify`
report.json, report.html
labels.txt            what the classes are called, where that is known
eval.json             what `zaq eval` measured of model.onnx, on which data
usage.py, .js, .cpp   how a program calls the file; not of what takes no images
images.safetensors    what the method drew from the model alone, for other runs (`--samples`); not all methods do
snapshots/            where a run that was broken off can go on (`--resume`)

All of it is built in a folder beside, `NAME.partial`, and moved into place when it is whole.
"""

import errno
import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.bounds import json_text, plain_json, plain_text
from zaq.config.card import Card
from zaq.config.files import beside, write_whole
from zaq.engine.images import IMAGES
from zaq.engine.snapshot import Content
from zaq.errors import OutputError, RunError, SourceError
from zaq.export.session import properties
from zaq.ir.capture import quiet
from zaq.quant import op as op  # the operator that a checkpoint's graph holds
from zaq.report.facts import onnx_metadata
from zaq.sources import read_program, read_pt2
from zaq.sources.interface import Interface
from zaq.sources.program import REAL_IMAGES

__all__ = ["FILES", "FRAME", "MEASURED", "NEEDED", "SNAPSHOTS", "TEACHER", "Run", "beside", "disk_errors", "write_file"]

TEACHER = "teacher.pt2"
FILES = (
    "model.onnx",
    "quantized.pt2",
    TEACHER,
    "options.json",
    "log.jsonl",
    "samples.safetensors",
    "report.json",
    "report.html",
    "labels.txt",
    "eval.json",
    "usage.py",
    "usage.js",
    "usage.cpp",
)
NEEDED = ("quantized.pt2", "options.json")  # for a file to be made
FRAME = "frame.onnx"
PARTS = (*NEEDED, FRAME)
SNAPSHOTS = "snapshots"
MEASURED = "eval.json"
FORMS = ("model.*.onnx", "model.*ort", "usage.*")  # what `zaq export` adds
LOCK = "lock"


class Run:
    """A run directory on disk."""

    def __init__(self, path: Path) -> None:
        self.path = self.place = path  # where it lies, and where it goes when it is whole

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    @contextmanager
    def building(cls, path: Path, overwrite: bool = False, resume: bool = False) -> Iterator["Run"]:
        """A run in a folder beside `path`, until `finish` moves it there; what is there stays until then.

        If the block ends badly, the folder beside stays if anything in it can be gone on from. `resume`: begin with the
        snapshots that are there, or in `path` itself, where a run was ended by Ctrl-C.

        Raises OutputError where `path` holds anything, unless `overwrite` or `resume`; where a run was broken off, and
        neither is said; where there is nothing to resume; and where another process builds the same run.
        """
        with disk_errors(path):
            work = beside(path)
            if path.exists() and not path.is_dir():
                raise OutputError(f"{path}: is a file; -o names a folder.")
            if not (overwrite or resume) and path.is_dir() and any(p != work for p in path.iterdir()):
                raise OutputError(f"{path}: exists already; choose another folder with -o, or say --overwrite.")
            if work.is_symlink():
                raise OutputError(f"{work}: is a link; the run is built there before it is moved. Remove the link.")
            work.mkdir(parents=True, exist_ok=True)
        with _locked(work, path):
            run = cls(work)
            run.place = path
            try:
                _begin(work, path, overwrite, resume)
                yield run
            except BaseException:
                if run.path == work and not _worth(work):
                    shutil.rmtree(work)
                raise

    def finish(self, snapshots: bool = False) -> None:
        """Move a run that was built into its place; with its snapshots, where it could still go on."""
        work, self.path = self.path, self.place
        with disk_errors(self.place):
            (work / LOCK).unlink()
            _move(work, self.place)
            if not snapshots:
                shutil.rmtree(self.place / SNAPSHOTS, ignore_errors=True)

    @classmethod
    def open(cls, path: Path, needed: tuple[str, ...] = ("model.onnx", *NEEDED)) -> "Run":
        """A finished run. Raises SourceError if the directory is none."""
        if path.is_file():
            raise SourceError(f"{path}: is a file; name the folder of its run, as {path.parent}.")
        missing = [n for n in needed if not (path / n).is_file()]
        if missing:
            raise SourceError(f"{path}: is no run of zaq quantize ({', '.join(missing)} missing).")
        return cls(path)

    def write(self, name: str, content: bytes | str | Content) -> None:
        write_file(self.path / name, content)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json_text(value, indent=1) + "\n")

    def write_program(self, name: str, exported: torch.export.ExportedProgram, data: str | None = None) -> None:
        """A network as a .pt2. The student's graph holds `zaq::fake_quantize` on its edges, biases rounded as in the
        file. `data`: the real images that it learned from, which the file says.
        """
        buffer = io.BytesIO()
        with quiet():
            # into memory: straight to a full disk, torch's writer would abort the process
            torch.export.save(exported, buffer, extra_files={REAL_IMAGES: data} if data else None)
        self.write(name, buffer.getvalue())

    def write_samples(self, samples: Tensor, card: Card) -> None:
        low, high = card.bounds()
        pixels = ((samples - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
        self.write("samples.safetensors", save({"pixels": pixels.contiguous()}))

    def keep_measured(self, row: dict[str, Any]) -> None:
        """Keep what was measured of model.onnx in the place of what was measured before by the same `data`, `limit`,
        `metric` and `card`."""
        same = ("data", "limit", "metric", "card")
        rows = [r for r in self.measured() if any(r.get(key) != row[key] for key in same)]
        self.write_json(MEASURED, [*rows, row | {"sha256": self._file_hash()}])

    def measured(self) -> list[dict[str, Any]]:
        """What `zaq eval` left of the model.onnx that lies here: a row each with `metric`, `value`, `data`, `limit`,
        `card`. What was measured of an older file is left out, and what is no such row."""
        try:
            rows = plain_json(plain_text(self.path / MEASURED))
        except (OSError, ValueError):
            return []
        mine = self._file_hash()
        known = [r for r in rows if isinstance(r, dict) and r.get("sha256") == mine] if isinstance(rows, list) else []
        return [r for r in known if isinstance(r.get("value"), int | float) and {"metric", "data", "limit"} <= r.keys()]

    def _file_hash(self) -> str:
        return hashlib.sha256((self.path / "model.onnx").read_bytes()).hexdigest()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files that an exported file is made from, or whose truth it shares. How much memory the run
        was allowed, and how it was asked for, are left out: they make no difference."""
        found = {name: (self.path / name).read_bytes() for name in PARTS if (self.path / name).is_file()}
        with suppress(KeyError, ValueError, TypeError):  # none of that name, or no options that zaq wrote
            options = plain_json(found["options.json"])
            del options["memory"]
            options.pop("call", None)
            found["options.json"] = json_text(options, indent=1).encode()
        return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}

    def require_parts(self, name: str) -> None:
        """Raise SourceError if a file of this folder is not zaq's, or was exported from other parts than lie here."""
        found = properties(self.path / name)
        if "zaq.version" not in found:
            raise SourceError(
                f"{self.path / name}: was not written by zaq; zaq export {self.path} --overwrite makes it anew."
            )
        try:
            theirs = plain_json(found.get("zaq.parts", "{}"))
            if not isinstance(theirs, dict):
                raise ValueError(f"it is {theirs!r:.40}")
        except ValueError as error:
            raise SourceError(f"{self.path / name}: its property zaq.parts is no JSON object ({error}).") from error
        for part, digest in self.hashes().items():
            if theirs.get(part, digest) != digest:
                raise SourceError(
                    f"{self.path / name}: was not made from the {part} beside it (their hashes differ): the folder "
                    "holds parts of two "
                    f"runs. zaq export {self.path} --overwrite makes the file from the checkpoint that is there."
                )

    def options(self) -> dict[str, Any]:
        """What the run was asked for. Raises SourceError for a file that does not say all of it."""
        path = self.path / "options.json"
        try:
            options: dict[str, Any] = plain_json(plain_text(path))
            Card.from_dict(options["card"])
            if not isinstance(target := onnx_metadata(options)["target"], str):
                raise TypeError(f"its target is {target!r:.40}")
        except KeyError as error:
            raise SourceError(f"{path}: says nothing of {error}; it is not what zaq quantize wrote.") from error
        except (ValueError, TypeError, SourceError) as error:
            raise SourceError(f"{path}: is not readable as JSON, or not what zaq quantize wrote ({error}).") from error
        return options

    def card(self) -> Card:
        """What is known of the input, and what the classes are called."""
        return Card.from_dict(self.options()["card"]).override(class_names=self.interface().classes)

    def frame(self) -> bytes | None:
        """What stands around the network in its files (`zaq.sources.frame`); None for nothing."""
        path = self.path / FRAME
        return path.read_bytes() if path.is_file() else None

    def interface(self) -> Interface:
        """What the model's source took and gave, which a run of an older zaq does not say."""
        return Interface.from_dict(self.options().get("interface"))

    def program(self) -> torch.export.ExportedProgram:
        return read_program(self.path / "quantized.pt2")

    def student(self) -> GraphModule:
        return read_pt2(self.path / "quantized.pt2")

    def teacher(self) -> GraphModule | None:
        """The float network that the run was made from; a run of an older zaq keeps none."""
        return read_pt2(self.path / TEACHER) if (self.path / TEACHER).is_file() else None

    def samples(self) -> Tensor:
        """The stored synthetic samples, as the model reads them, (N, C, H, W)."""
        low, high = self.card().bounds()
        return self.pixels().float() / 255 * (high - low) + low

    def pixels(self) -> Tensor:
        """The stored synthetic samples as bytes (N, C, H, W), from the least to the greatest value of the input."""
        path = self.path / "samples.safetensors"
        if not path.is_file():
            raise SourceError(f"{path}: missing; the run stored no samples to verify with.")
        card = self.card()
        try:
            pixels = load_file(path)["pixels"]
        except (SafetensorError, KeyError, OSError) as error:
            raise SourceError(f"{path}: is no readable safetensors file with pixels in it ({error}).") from error
        if pixels.dtype is not torch.uint8 or not len(pixels) or tuple(pixels.shape[1:]) != tuple(card.input):
            raise SourceError(
                f"{path}: holds {pixels.dtype} of {tuple(pixels.shape)}; bytes (N, {', '.join(map(str, card.input))}) "
                "are expected."
            )
        return pixels


@contextmanager
def _locked(work: Path, path: Path) -> Iterator[None]:
    """Raises OutputError where another process holds the folder."""
    try:
        with FileLock(work / LOCK, blocking=False):
            yield
    except Timeout as error:
        raise OutputError(f"{path}: another process is writing this run; wait for it, or name another -o.") from error


def _snapshots(folder: Path) -> bool:
    return any((folder / SNAPSHOTS).glob("snapshot-*"))


def _worth(work: Path) -> bool:
    """Whether what a run left can still become a file: by `--resume`, or by `zaq export`."""
    return _snapshots(work) or all((work / name).is_file() for name in NEEDED)


def _begin(work: Path, path: Path, overwrite: bool, resume: bool) -> None:
    """Clear a folder that a run is to be built in, but for the snapshots to go on from."""
    if resume and not _snapshots(work):
        if not _snapshots(path):
            raise OutputError(f"--resume {path}: there is no snapshot to go on from, neither there nor in {work}.")
        shutil.copytree(path / SNAPSHOTS, work / SNAPSHOTS, dirs_exist_ok=True)
        if (path / IMAGES).is_file():
            shutil.copyfile(path / IMAGES, work / IMAGES)
    if _worth(work) and not (overwrite or resume):
        on = f"--resume {path} goes on with it" if _snapshots(work) else f"zaq export {work} makes its file"
        raise OutputError(f"{path}: a run into it was broken off; {on}, --overwrite begins anew.")
    for entry in work.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if not (resume and entry.name == SNAPSHOTS):
                shutil.rmtree(entry)
        elif entry.name != LOCK and not (resume and entry.name == IMAGES):
            entry.unlink()


def _move(work: Path, path: Path) -> None:
    """Put a whole run into its place. Files of an older one go, and what is not ours stays."""
    if not path.exists():
        work.rename(path.resolve())
        return
    shutil.rmtree(path / SNAPSHOTS, ignore_errors=True)
    for name in (*FILES, IMAGES, FRAME, *FORMS):
        for file in path.glob(name):
            file.unlink()
    for entry in sorted(work.iterdir(), key=lambda p: p.name == SNAPSHOTS):  # these last: they could do it again
        entry.rename(path / entry.name)
    work.rmdir()


def write_file(path: Path, content: bytes | str | Content) -> None:
    """As `write_whole`. Raises OutputError or RunError where that fails."""
    with disk_errors(path):
        write_whole(path, content.encode() if isinstance(content, str) else content)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a sentence that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent if path.parent.exists() else Path()).free // 2**20
            raise RunError(
                f"{path}: no space left on the disk ({free} MiB free); free some, or choose another folder with -o."
            ) from error
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error
