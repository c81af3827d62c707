"""What kinds of sources share: what is asked for, what is handed back, and the way from a module to a graph."""

import hashlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq.config.card import Card
from zaq.errors import SourceError, install
from zaq.ir.capture import cast_note, quiet, trace
from zaq.ir.sizes import open_up
from zaq.sources.interface import Interface
from zaq.sources.operators import define_missing_operators, own_operators

__all__ = ["PLAIN", "SAVE_IT", "Request", "Source", "file_hash", "first_line", "hash_of", "require", "source_of"]

SAVE_IT = (
    "Load it yourself where you trust it, then save it as .pt2:\n"
    "  program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))\n"
    "  torch.export.save(program, 'model.pt2')"
)

PLAIN = Interface()


@dataclass(frozen=True)
class Source:
    """A model as a functional graph, what is known of its input, and the hash of the file or the weights it was read
    from.

    `notes` are what a report of it has to say, such as that its weights are random. `interface` is what files made of
    it are to keep; `frame`: what stood around the network in a file, and stands around the quantized one again
    (`zaq.sources.frame`).
    """

    name: str
    graph: GraphModule
    card: Card
    sha256: str
    notes: tuple[str, ...] = ()
    frame: bytes | None = None
    interface: Interface = PLAIN


@dataclass(frozen=True)
class Request:
    """A source as it was spelt, the card fields that flags gave,
    and how an architecture or a factory is to be called."""

    spec: str
    name: str  # without its kind
    path: Path | None = None  # of a file
    flags: dict[str, Any] = field(default_factory=dict)
    arch: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    bind: dict[str, tuple[float, ...]] = field(default_factory=dict)
    dynamic: tuple[int, ...] = ()  # of (N, C, H, W), what is to stay open beside the batch
    layout: str = ""  # of the source's images; empty for what it shows

    def file(self) -> Path:
        """The path of a source that is a file."""
        assert self.path is not None
        return self.path

    def card(self, known: dict[str, Any] | None = None) -> Card:
        """What is known of the input: by the source itself, over that by the card beside a file, over that by flags."""
        found = Card.beside(self.path, known) if self.path else Card.from_dict(known or {})
        return found.override(**self.flags)


def source_of(
    request: Request,
    name: str,
    model: nn.Module,
    known: dict[str, Any],
    sha256: str | None = None,
    notes: Iterable[str] = (),
    interface: Interface = PLAIN,
) -> Source:
    """A module traced at the shape that its card says. Raises SourceError where none does."""
    card = request.card(known)
    if len(card.input) not in (2, 3, 4):
        raise SourceError(
            f"{request.spec}: what it takes is not known; say it: --input-shape 3,224,224 (channels, height, width; "
            "of a line channels and length, of a volume its depth before its height)."
        )
    notes = (*notes, *cast_note(model.state_dict().values()))
    model = model.cpu().float()
    with own_operators():
        graph, fixed = open_up(lambda image: trace(model, torch.zeros(2, *image)), card.input, request.dynamic)
    notes = (*notes, *graph.meta["notes"], *fixed)
    return Source(name, graph, card, sha256 or hash_of(model.state_dict()), notes, interface=interface)


def hash_of(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def require(library: str, extra: str, spec: str) -> Any:
    """The library that a kind of source is read with. Raises SourceError with the extra that installs it."""
    try:
        with quiet():
            define_missing_operators()
            return importlib.import_module(library)
    except ImportError as error:
        why = (
            ""
            if isinstance(error, ModuleNotFoundError) and error.name == library
            else f" (its import fails: {first_line(error)})"
        )
        raise SourceError(f"{spec}: {library} is needed{why}: {install(extra)}.") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
