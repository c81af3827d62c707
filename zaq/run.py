"""The run directory: what one quantization leaves on disk, and how it is read again.

model.onnx            the integer file
quantized.pt2         the student, with its quantizers (torch.export)
options.json          everything resolved, so that the run can be repeated
log.jsonl             losses, step by step
samples.safetensors   synthetic samples, as 8-bit pixels, for `zaq verify`
report.json, report.html
"""

import errno
import hashlib
import io
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.bounds import json_text, plain_json, plain_text
from zaq.config.card import Card
from zaq.errors import OutputError, RunError, SourceError
from zaq.export.session import properties
from zaq.ir.capture import quiet
from zaq.report.facts import onnx_metadata
from zaq.sources import read_program, read_pt2

__all__ = ["FILES", "Run", "disk_errors", "write_file"]

FILES = (
    "model.onnx",
    "quantized.pt2",
    "options.json",
    "log.jsonl",
    "samples.safetensors",
    "report.json",
    "report.html",
)
PARTS = ("quantized.pt2", "options.json")


class Run:
    """A run directory on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> "Run":
        """Make the directory. Raises OutputError if it exists and holds anything, unless `overwrite`."""
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path}: is a file; -o names a folder.")
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                raise OutputError(f"{path}: exists already; choose another folder with -o, or say --overwrite.")
            for name in FILES:
                (path / name).unlink(missing_ok=True)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """A finished run. Raises SourceError if the directory is none."""
        missing = [n for n in ("model.onnx", "quantized.pt2", "options.json") if not (path / n).is_file()]
        if missing:
            raise SourceError(f"{path}: is no run of zaq quantize ({', '.join(missing)} missing).")
        return cls(path)

    def write(self, name: str, content: bytes | str) -> None:
        write_file(self.path / name, content)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json_text(value, indent=1) + "\n")

    def write_checkpoint(self, exported: torch.export.ExportedProgram) -> None:
        """The student as a .pt2 whose graph holds `zaq::fake_quantize` on its edges, biases rounded as in the file."""
        buffer = io.BytesIO()
        with quiet():
            torch.export.save(exported, buffer)  # straight to a full disk, torch's writer would abort the process
        self.write("quantized.pt2", buffer.getvalue())

    def write_samples(self, samples: Tensor, card: Card) -> None:
        low, high = card.bounds()
        pixels = ((samples - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
        self.write("samples.safetensors", save({"pixels": pixels.contiguous()}))

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files that an exported file is made from, or whose truth it shares."""
        return {
            name: hashlib.sha256((self.path / name).read_bytes()).hexdigest()
            for name in PARTS
            if (self.path / name).is_file()
        }

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
            onnx_metadata(options), Card.from_dict(options["card"])
        except KeyError as error:
            raise SourceError(f"{path}: says nothing of {error}; it is not what zaq quantize wrote.") from error
        except (ValueError, TypeError, SourceError) as error:
            raise SourceError(f"{path}: is not readable as JSON, or not what zaq quantize wrote ({error}).") from error
        return options

    def card(self) -> Card:
        return Card.from_dict(self.options()["card"])

    def program(self) -> torch.export.ExportedProgram:
        return read_program(self.path / "quantized.pt2")

    def student(self) -> GraphModule:
        return read_pt2(self.path / "quantized.pt2")

    def samples(self) -> Tensor:
        """The stored synthetic samples, as the model reads them, (N, C, H, W)."""
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
        low, high = card.bounds()
        return pixels.float() / 255 * (high - low) + low


def write_file(path: Path, content: bytes | str) -> None:
    """Write to a file of a name that nobody can foresee, made anew and in the same folder, then move it into place.

    Raises OutputError or RunError where that fails.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with disk_errors(path), temporary.open("xb") as stream:  # x: no file and no link that lies there already
        try:
            stream.write(content if isinstance(content, bytes) else content.encode())
            stream.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


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
