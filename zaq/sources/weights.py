"""Weights alone, as safetensors or as a state dict in a .pt file, and the architecture that they belong to."""

import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zaq.config.bounds import capacity, entries, plain_json, plain_text
from zaq.config.card import Card
from zaq.errors import SourceError, unknown
from zaq.ir.capture import quiet
from zaq.sources.base import SAVE_IT, Request, Source, file_hash, first_line, source_of
from zaq.sources.factory import called, found
from zaq.sources.libraries import ARCHITECTURES
from zaq.sources.zoo import ARCHITECTURES as ZOO

__all__ = ["read_weights", "read_zoo", "refuse_pickle"]

SHOWN, SHOWN_KEYS = 3, 8  # keys in a message: of each kind that does not fit; of all
# Keys under which training scripts put the weights; where several are there, the first of these.
WRAPPERS = ("state_dict", "model", "params_ema", "params", "net", "model_state_dict", "network")
TRAINERS = re.compile(r"optim|sched|scaler")  # whose tensors are no network's
DEEP = 3  # dicts that weights may lie in
# In names of arguments that say where weights lie.
PLACES = ("path", "file", "cfg", "dir", "url", "weights", "pretrained")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


def read_weights(request: Request) -> Source:
    """Weights, put into the architecture that --arch or the card beside them names."""
    path = request.file()
    card = _card(path)
    arch, kwargs = request.arch or card.get("arch"), request.kwargs or card.get("kwargs", {})
    if not request.arch and arch:
        _require_an_architecture(path, arch)
    if not request.kwargs and kwargs:
        _require_plain_arguments(path, kwargs)
    shape, asked = Card.beside(path).input, tuple(request.flags.get("input") or ())
    if shape and asked and shape != asked:
        raise SourceError(f"{path}: the model takes inputs of {shape}, as its card says; --input-shape says {asked}.")
    state = _state(path)
    if not arch:
        raise SourceError(
            f"{path}: holds weights alone, no model; say what they are the weights of: --arch NAME, one of "
            f"{', '.join(ZOO)}, "
            f"timm:NAME, torchvision:NAME or package.module:factory (or 'arch' in {path.stem}.json)."
        )
    model, known = _architecture(f"{path}: --arch {arch}", str(arch), kwargs, card)
    _fill(path, str(arch), model, state)
    return source_of(request, path.stem, model, known, file_hash(path))


def read_zoo(request: Request) -> Source:
    """A model that zaq ships: beside this package in a wheel, one folder up in a checkout."""
    here = Path(__file__).resolve().parents[1]
    folder = next((d for d in (here / "models", here.parent / "models") if any(d.glob("*.safetensors"))), None)
    models = {p.stem: p for p in folder.glob("*.safetensors")} if folder else {}
    if request.name not in models:
        raise SourceError(f"{request.spec}: " + unknown("model", request.name, models))
    return read_weights(
        Request(request.spec, request.name, models[request.name], request.flags, dynamic=request.dynamic)
    )


def refuse_pickle(request: Request) -> Source:
    """Raises SourceError, with the way out."""
    raise SourceError(f"{request.path}: a pickle can run any code when it is loaded, so zaq does not. {SAVE_IT}")


def _card(path: Path) -> dict[str, Any]:
    card = path.with_suffix(".json")
    try:
        values = plain_json(plain_text(card)) if card.is_file() else {}
    except ValueError:
        return {}  # Card.beside says what is wrong with it
    return values if isinstance(values, dict) else {}


def _require_an_architecture(path: Path, arch: Any) -> None:
    """A card may name what zaq and libraries have; a function of anybody's is named on the command line alone."""
    kind, colon, _ = str(arch).partition(":")
    if colon and kind not in ARCHITECTURES:
        raise SourceError(
            f"{path.with_suffix('.json')}: arch {str(arch)[:60]!r} would be called, whatever it is, so a card may not "
            "name it; it "
            "names one of "
            + ", ".join([*ZOO, *(f"{k}:NAME" for k in ARCHITECTURES)])
            + ". Say --arch yourself where you trust it."
        )


def _require_plain_arguments(path: Path, kwargs: Any) -> None:
    """Numbers and words for a library's network, none of which names a file or an address to get weights from."""
    values = kwargs.items() if isinstance(kwargs, dict) else [("kwargs", kwargs)]
    for name, value in values:
        parts = value if isinstance(value, list) else [value]
        plain = all(v is None or isinstance(v, int | float) or re.fullmatch(r"[\w.+-]+", str(v)) for v in parts)
        if not plain or not isinstance(kwargs, dict) or any(word in name for word in PLACES):
            raise SourceError(
                f"{path.with_suffix('.json')}: kwargs: {name} {str(value)[:60]!r} is neither a number nor a word that "
                "says how to build a "
                "network. Say --kwargs yourself where you trust it."
            )


def _state(path: Path) -> dict[str, Tensor]:
    """The weights by name, without what training scripts and wrappers put around them."""
    if path.suffix.lower() == ".safetensors":
        try:
            return _bare(path, load_file(path))
        except SafetensorError as error:
            raise SourceError(f"{path}: is no readable safetensors file: {first_line(error)}") from error
    if zipfile.is_zipfile(path):
        _require_whole(path)
    try:
        with quiet():
            return _bare(path, torch.load(path, map_location="cpu", weights_only=True))
    except SourceError:
        raise
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: holds more than tensors: a pickle can run any code when it is loaded, so zaq does not. "
            f"{SAVE_IT}\n"
            "or save its weights alone, torch.save(model.state_dict(), 'weights.pt'), and name the architecture with "
            "--arch."
        ) from error
    except Exception as error:  # whatever a reader of a damaged file stumbles over
        raise SourceError(f"{path}: is damaged, or no file of torch.save: {first_line(error)}") from error


def _require_whole(path: Path) -> None:
    """Raises SourceError for an archive that would unpack to too much, that is damaged, or that is TorchScript's."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = entries(archive, capacity(path))
            torn = archive.testzip()  # torch reads what does not fit its checksum without a word
    except ValueError as error:
        raise SourceError(f"{path}: this archive is refused: {error}.") from error
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path}: this archive is damaged: {first_line(error)}") from error
    if torn:
        raise SourceError(f"{path}: this archive is damaged: {torn} does not have the checksum it should.")
    if any(n.endswith("constants.pkl") or "/code/" in n for n in names):
        raise SourceError(
            f"{path}: is a TorchScript archive, which cannot be traced; take the module it was made from. {SAVE_IT}"
        )


def _bare(path: Path, state: Any) -> dict[str, Tensor]:
    there, level = ({"": state} if _is_state(state) else {}), {"": state}
    for _ in range(DEEP):
        if there:
            break
        dicts = ((outer, inner) for outer, inner in level.items() if isinstance(inner, Mapping))
        level = {f"{outer}.{k}".lstrip("."): v for outer, inner in dicts for k, v in inner.items() if _may_hold(k, v)}
        there = {name: v for name, v in level.items() if _is_state(v)}
    known = [name for word in WRAPPERS for name in there if name.rpartition(".")[2] == word]
    if not there or (len(there) > 1 and not known):
        raise SourceError(
            f"{path}: holds {_told(state, there)}; torch.save(model.state_dict(), ...) makes a file of weights alone."
        )
    names = {str(k): v for k, v in there[known[0] if known else next(iter(there))].items()}
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in names)), ""):
        names = {k.removeprefix(prefix): v for k, v in names.items()}
    return names


def _is_state(value: Any) -> bool:
    """Whether something is weights by name."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _may_hold(key: Any, value: Any) -> bool:
    """Whether a part of a checkpoint may be, or hold, a network's weights."""
    return isinstance(value, Mapping) and not TRAINERS.search(str(key).lower())


def _told(state: Any, there: Mapping[str, Any]) -> str:
    """What a file holds that is not one network's weights."""
    if there:
        return f"several networks' weights ({', '.join(there)}), and which is meant cannot be told"
    if not isinstance(state, Mapping):
        return f"no weights by name (a state dict), but {type(state).__name__}"
    keys = [str(k) for k in state]
    shown = ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
    return f"no weights by name (a state dict), under its keys {shown or '(none)'}"


def _architecture(
    where: str, arch: str, kwargs: dict[str, Any], card: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of random weights, and what is known of its input: its size, for how it is normalised is the weights'
    matter.
    """
    kind, colon, name = arch.partition(":")
    if kind in ARCHITECTURES and colon:
        model, known = ARCHITECTURES[kind](name, kwargs, True)
        return model, {"input": known["input"]} if "input" in known else {}
    if colon:
        return called(where, found(where, kind, name), kwargs), {}
    if arch not in ZOO:
        raise SourceError(
            f"{where}: " + unknown("arch", arch, [*ZOO, "timm:NAME", "torchvision:NAME", "package.module:factory"])
        )
    classes = {"classes": card["classes"]} if "classes" in card else {}
    return called(where, ZOO[arch], classes | kwargs), {"input": (3, 32, 32)}


def _fill(path: Path, arch: str, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the weights. Raises SourceError that names the first keys which do not fit."""
    wanted = model.state_dict()
    wrong = {
        "missing": [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in state if k not in wanted],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} for {tuple(wanted[k].shape)}"
            for k in wanted
            if k in state and state[k].shape != wanted[k].shape
        ],
    }
    told = [f"{len(v)} {k}: {', '.join(v[:SHOWN])}{', ...' if len(v) > SHOWN else ''}" for k, v in wrong.items() if v]
    if told:
        raise SourceError(f"{path}: the weights do not fit {arch}: {'; '.join(told)}.")
    model.load_state_dict(wanted | state)
