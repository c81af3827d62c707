"""Generators in a file, for networks to come: safetensors, what is no tensor as JSON in its head.

`shared.NAME` holds the weights that all of them share, `0.NAME` what is the first one's own. The head says the
architecture with its sizes and, of each network, what it is called, the SHA-256 of its file, its classes and its card.
Nothing is unpickled, and a file can have nothing made but what is in ARCHITECTURES.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zaq.config.bounds import json_text, plain_json
from zaq.config.card import Card
from zaq.engine.images import drawn_in
from zaq.errors import SourceError
from zaq.synth.generators import Generator
from zaq.synth.merge import ARCHITECTURES, Cocktail, Of, architecture, joined, shared

__all__ = ["content", "opened"]

HEAD = "zaq generators"
Size = Annotated[int, Field(ge=1, le=2**10)]  # of a generator: channels, numbers of a latent
Part = Annotated[float, Field(gt=0, lt=1)]  # as the eps of batch norms
Classes = Annotated[int, Field(ge=1, le=2**15)]
OF_CARD = ("low", "high")  # what a generator has from its card


class _Told(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Network(_Told):
    name: Annotated[str, Field(max_length=1000)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    classes: Classes
    card: dict[str, Any]


class _Head(_Told):
    version: Literal[1]
    architecture: Literal["dcgan", "painter"]
    sizes: dict[str, bool | Size | Part | None]
    networks: Annotated[list[_Network], Field(min_length=1, max_length=1000)]
    made: dict[str, bool | int | float | str | list[str]]


def content(cocktail: Cocktail) -> bytes:
    """The file of a cocktail."""
    first = cocktail.generators[0]
    name, sizes = architecture(first)
    common = shared(first)
    tensors = {f"shared.{k}": p.detach().cpu().contiguous() for k, p in common.items()}
    networks = []
    for i, (of, generator) in enumerate(zip(cocktail.of, cocktail.generators, strict=True)):
        own = {k: v for k, v in generator.state_dict().items() if k not in (*common, *OF_CARD)}
        tensors |= {f"{i}.{k}": v.detach().cpu().contiguous() for k, v in own.items()}
        networks.append(
            {"name": of.name, "sha256": of.sha256, "classes": generator.classes, "card": generator.card.to_dict()}
        )
    head = {"version": 1, "architecture": name, "sizes": sizes, "networks": networks, "made": cocktail.made}
    return save(tensors, {HEAD: json_text(head)})


def opened(path: Path) -> Cocktail:
    """The generators of a file, or the one that a run has kept.

    Raises SourceError for a file that `content` did not write or that was changed since, and for a run that kept none,
    or one of a kind that is not in ARCHITECTURES.
    """
    if path.is_dir():
        return _of_run(path)
    try:
        with safe_open(path, "pt") as file:
            head = _Head.model_validate(plain_json((file.metadata() or {})[HEAD]))
            return _made(head, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # it is no dict
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SourceError(f"{path}: its head is not what zaq cocktail wrote ({where}: {first['msg']}).") from error
    except KeyError as error:
        raise SourceError(f"{path}: was not written by zaq cocktail, or lacks a part of it ({error}).") from error
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, SourceError) as error:
        found = " ".join(str(error).split())[:200]
        raise SourceError(f"{path}: is no file of zaq cocktail and no run, or was changed since ({found}).") from error


def _of_run(path: Path) -> Cocktail:
    model, found = drawn_in(path)
    generator = found["generator"]
    if not isinstance(generator, Generator) or not isinstance(model, dict):
        raise SourceError(f"{path}: its method kept no generator; flagship does, where it draws its images itself.")
    try:
        architecture(generator)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    return Cocktail([Of(str(model.get("name")), model.get("sha256"))], [generator])


def _made(head: _Head, tensors: dict[str, Tensor]) -> Cocktail:
    kind, generators = ARCHITECTURES[head.architecture], []
    used = {k for k in tensors if k.startswith("shared.")}
    for i, network in enumerate(head.networks):
        own = {k: v for k, v in tensors.items() if k.startswith(f"{i}.")}
        used |= own.keys()
        if not any(v.dim() == 2 and len(v) == network.classes for v in own.values()):
            raise ValueError(f"{network.name!r} has no table of {network.classes} classes")  # before one is made
        generator = kind(card=Card.from_dict(network.card), classes=network.classes, **head.sizes)
        fixed = {name: getattr(generator, name) for name in OF_CARD}
        state = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith("shared.") or k in own} | fixed
        _require_sound(state, generator, network.classes)
        generator.load_state_dict(state)
        generators.append(generator)
    if used != tensors.keys():
        raise ValueError(f"{min(tensors.keys() - used)} is of no network that the head names")
    of = [Of(network.name, network.sha256) for network in head.networks]
    return Cocktail(of, joined(generators, shared(generators[0])), dict(head.made))


def _require_sound(state: dict[str, Tensor], generator: Generator, classes: int) -> None:
    """Raise ValueError for tensors of another kind than the generator's, and for values that can be none of it."""
    for name, wanted in generator.state_dict().items():
        found = state[name]
        if found.dtype != wanted.dtype or (name != "drawn" and found.shape != wanted.shape):
            raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)}, not {wanted.dtype} {tuple(wanted.shape)}")
        if not bool(found.isfinite().all()):
            raise ValueError(f"{name} is NaN or infinite")
    drawn = state["drawn"]
    if drawn.dim() != 1 or not len(drawn) or bool(((drawn < 0) | (drawn >= classes)).any()):
        raise ValueError(f"the classes that are drawn are none of the {classes}")
