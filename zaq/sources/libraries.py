"""Networks of timm, torchvision and the Hugging Face hub, with their weights and their own preprocessing."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from zaq.errors import SourceError, unknown
from zaq.sources.base import Request, Source, first_line, require, source_of
from zaq.sources.factory import seeded

__all__ = ["ARCHITECTURES", "read_hub", "read_timm", "read_torchvision"]

RANDOM = "the weights are random (--random-weights): what comes out is good for looking at, not for use"
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
Made = tuple[nn.Module, dict[str, Any]]


def read_timm(request: Request) -> Source:
    """`timm:NAME`, as timm names it: with or without the tag of its weights."""
    return _read(request, timm_model)


def read_torchvision(request: Request) -> Source:
    """`torchvision:NAME`; --kwargs '{"weights": "IMAGENET1K_V1"}' takes others than the default weights."""
    return _read(request, torchvision_model)


def read_hub(request: Request) -> Source:
    """`hf-hub:OWNER/NAME`: a model that timm can load from the hub."""
    return _read(request, hub_model)


def _read(request: Request, make: Callable[[str, dict[str, Any], bool], Made]) -> Source:
    model, known = make(request.name, request.kwargs, request.random_weights)
    notes = [RANDOM] if request.random_weights else []
    notes += known.pop("notes", [])
    size = request.flags.get("input")
    if size and "crop" in known:  # another size than the library's: resized and cropped by the same ratio
        known["resize"], known["crop"] = math.floor(min(size[1:]) * known["resize"] / known["crop"]), min(size[1:])
    return source_of(request, request.name.rpartition("/")[2], model, known, notes=notes)


def timm_model(name: str, kwargs: dict[str, Any], random: bool, source: str = "timm") -> Made:
    """A network of timm, and the card fields that it says."""
    spec = f"{source}:{name}"
    timm = require("timm", "timm", spec)
    if source == "timm" and not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:50] or timm.list_models()
        raise SourceError(f"{spec}: " + _near("network of timm", name.partition(".")[0], near))
    with _downloading(spec, "timm"), _hub_or_its_cache():
        model = timm.create_model(name if source == "timm" else spec, pretrained=not random, **kwargs)
    data = timm.data.resolve_model_data_config(model)
    side = data["input_size"][1:]
    known = {
        "input": tuple(data["input_size"]), "mean": tuple(data["mean"]), "std": tuple(data["std"]),
        "crop": min(side), "resize": math.floor(min(side) / data["crop_pct"]), "classes": model.num_classes or None,
        "interpolation": data["interpolation"] if data["interpolation"] in INTERPOLATIONS else "bilinear", "notes": [],
        "class_names": _timm_names(timm, model),
    }  # fmt: skip
    if data["crop_mode"] == "squash":
        known["notes"].append("timm squeezes images for this network; zaq eval resizes their shorter side and crops")
    trained = (model.pretrained_cfg or {}).get("num_classes")
    if not random and kwargs.get("num_classes") not in (None, 0, trained):
        known["notes"].append(
            f"its classifier of {kwargs['num_classes']} classes is random: the weights are for {trained}"
        )
    return model, known


def _timm_names(timm: Any, model: nn.Module) -> tuple[str, ...]:
    """What a network's classes are called: as its weights say, or as ImageNet or the part of it that they are for."""
    about: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = about.get("label_names") or ()
    subset = timm.data.infer_imagenet_subset(model)
    if not names and subset and about.get("num_classes") == model.num_classes:
        info = timm.data.ImageNetInfo(subset)
        names = [info.index_to_description(i) for i in range(info.num_classes())]
    return tuple(map(str, names)) if len(names) == model.num_classes else ()


def hub_model(name: str, kwargs: dict[str, Any], random: bool) -> Made:
    """A network that the hub has for timm."""
    if name.count("/") != 1:
        raise SourceError(f"hf-hub:{name}: hf-hub:OWNER/NAME is expected, as in hf-hub:timm/resnet18.a1_in1k.")
    return timm_model(name, kwargs, random, source="hf-hub")


def torchvision_model(name: str, kwargs: dict[str, Any], random: bool) -> Made:
    """A network of torchvision, and the card fields that its weights say."""
    spec = f"torchvision:{name}"
    models = require("torchvision.models", "timm", spec)
    if name not in models.list_models():
        raise SourceError(f"{spec}: " + _near("network of torchvision", name, models.list_models()))
    known_weights = models.get_model_weights(name)
    wanted = kwargs.get("weights", "DEFAULT")
    if wanted not in known_weights.__members__:
        raise SourceError(f"{spec}: " + unknown("weights", str(wanted), known_weights.__members__))
    weights = known_weights[wanted]
    arguments = kwargs | {"weights": None if random else weights}
    with _downloading(spec, "torchvision"):
        model = models.get_model(name, **arguments)
    preset = weights.transforms()
    names = tuple(weights.meta.get("categories", ()))
    known: dict[str, Any] = {"classes": kwargs.get("num_classes") or len(names) or None}
    known["class_names"] = names if known["classes"] == len(names) else ()
    if hasattr(preset, "mean"):
        known |= {"mean": tuple(preset.mean), "std": tuple(preset.std), "interpolation": preset.interpolation.value}
    if hasattr(preset, "crop_size"):
        known |= {
            "crop": preset.crop_size[0],
            "resize": preset.resize_size[0],
            "input": (3, preset.crop_size[0], preset.crop_size[0]),
        }
    return model, known


ARCHITECTURES: dict[str, Callable[[str, dict[str, Any], bool], Made]] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
}


def _near(what: str, name: str, names: list[str]) -> str:
    """The sentence of `unknown` without the thousand names that there are."""
    return unknown(what, name, names).partition(" There is:")[0]


@contextmanager
def _downloading(spec: str, library: str) -> Iterator[None]:
    """What a library says against making a network, or getting its weights, as a sentence. Nothing it loads is
    unpickled.
    """
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with seeded():
            yield
    except OSError as error:  # of urllib and of the hub: no network, no such repository, nothing in the cache
        if "404" in str(error) or "Repository Not Found" in str(error):
            raise SourceError(
                f"{spec}: there is no such model on the hub, or it is private: {first_line(error)}"
            ) from error
        alone = "" if spec.startswith("hf-hub:") else ", or take the architecture alone with --random-weights"
        raise SourceError(
            f"{spec}: is not in the cache and cannot be downloaded ({first_line(error).rstrip('.')}). Try where there "
            f"is a network{alone}."
        ) from error
    except Exception as error:
        raise SourceError(f"{spec}: {library} cannot make it: {type(error).__name__}: {first_line(error)}") from error
    finally:
        os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


@contextmanager
def _hub_or_its_cache() -> Iterator[None]:
    """Where nothing answers, the hub's client tries every file for half a minute: ask once, and else read its cache
    alone.
    """
    hub = require("huggingface_hub", "timm", "hf-hub")
    before = hub.constants.HF_HUB_OFFLINE
    try:
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=5)
    except Exception:  # of whichever client is installed
        hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.constants.HF_HUB_OFFLINE = before
