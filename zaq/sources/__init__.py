"""Where a model comes from: a name or a path in, (graph, card) out. Nothing is unpickled."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from zaq.config import near
from zaq.errors import SourceError, unknown
from zaq.sources.base import Request, Source
from zaq.sources.factory import read_factory
from zaq.sources.layout import LAYOUTS
from zaq.sources.libraries import read_hub, read_timm, read_torchvision
from zaq.sources.onnx import read_onnx
from zaq.sources.program import read_program, read_program_source, read_pt2
from zaq.sources.weights import read_weights, read_zoo, refuse_pickle

__all__ = ["DEFAULT", "SOURCES", "Kind", "Source", "is_file", "load", "read_program", "read_pt2"]

DEFAULT = "zoo:resnet20_cifar10"


class Kind(NamedTuple):
    """How a kind of source is read, and which of --arch, --kwargs, --random-weights, --bind, --dynamic and --layout it
    has a use for."""

    read: Callable[[Request], Source]
    takes: tuple[str, ...] = ()


# By how a source is spelt: a suffix, or a prefix.
SOURCES = {
    ".pt2": Kind(read_program_source, ("dynamic", "layout")),
    ".onnx": Kind(read_onnx, ("bind", "layout")),
    ".safetensors": Kind(read_weights, ("arch", "kwargs", "dynamic")),
    ".pt": Kind(read_weights, ("arch", "kwargs", "dynamic")),
    ".pth": Kind(read_weights, ("arch", "kwargs", "dynamic")),
    ".pkl": Kind(refuse_pickle),
    "zoo:": Kind(read_zoo, ("dynamic",)),
    "timm:": Kind(read_timm, ("kwargs", "random_weights", "dynamic")),
    "torchvision:": Kind(read_torchvision, ("kwargs", "random_weights", "dynamic")),
    "hf-hub:": Kind(read_hub, ("kwargs", "random_weights", "dynamic")),
    "package.module:": Kind(read_factory, ("kwargs", "dynamic")),
}


def is_file(spec: str) -> bool:
    """Whether a source is spelt as a file, and not as `kind:name`."""
    return Path(spec).exists() or not re.match(r"[A-Za-z_][\w.-]+:", spec)


def load(
    spec: str,
    overrides: dict[str, object] | None = None,
    *,
    arch: str | None = None,
    kwargs: dict[str, Any] | None = None,
    random_weights: bool = False,
    bind: dict[str, tuple[float, ...]] | None = None,
    dynamic: tuple[int, ...] = (),
    layout: str = "",
) -> Source:
    """Load a source, spelt as one of SOURCES, and its card; `overrides` are card fields that flags gave.

    arch: what weights alone are the weights of. kwargs: arguments for the call that makes the network.
    random_weights: of a library's network take the architecture alone.
    bind: numbers for inputs of an ONNX file beside the image, which become constants.
    dynamic: 2 and 3, where height and width are to stay open; those of an ONNX file are as it has them.
    layout: NCHW or NHWC, where a file does not show in which order its images' dimensions come. Its files keep it.
    Raises SourceError for one that is missing, that is no model, or that would have to be unpickled.
    """
    kind, name, path = _kind(spec)
    layout = layout.upper()
    if layout and layout not in LAYOUTS:
        raise SourceError("--layout: " + unknown("layout", layout, LAYOUTS))
    options = {"arch": arch, "kwargs": kwargs, "random_weights": random_weights, "bind": bind, "dynamic": dynamic}
    options["layout"] = layout
    for option, value in options.items():
        if value and option not in SOURCES[kind].takes:
            takers = ", ".join(k for k, v in SOURCES.items() if option in v.takes)
            raise SourceError(
                f"{spec}: --{option.replace('_', '-')} means nothing to this kind of source; it goes with {takers}."
            )
    source = SOURCES[kind].read(
        Request(spec, name, path, overrides or {}, arch, kwargs or {}, random_weights, bind or {}, dynamic, layout)
    )
    return replace(source, interface=replace(source.interface, classes=source.card.class_names))


def _kind(spec: str) -> tuple[str, str, Path | None]:
    """The key of SOURCES that a spelling has, the name behind a prefix, and the path of a file."""
    if is_file(spec):
        path = Path(spec)
        if not path.exists():
            meant = near.missing(spec, SOURCES, [DEFAULT.partition(":")[2]])
            hint = f" Did you mean {meant}?" if meant else ""
            raise SourceError(
                f"{spec}: there is no such file.{hint} A model is a .pt2 file, or {DEFAULT}, or spelt "
                f"{', '.join(SOURCES)}."
            )
        if path.is_dir():
            raise SourceError(f"{spec}: {near.folder(path, SOURCES)}.")
        suffix = path.suffix.lower()
        if suffix not in SOURCES and (way := near.route(path)):
            raise SourceError(f"{spec}: is of a kind that zaq does not read: {way}.")
        if suffix not in SOURCES or not path.is_file():
            files = ", ".join(s for s in SOURCES if s.startswith("."))
            raise SourceError(f"{spec}: cannot tell a model by {suffix or 'no suffix'!r}; there is: {files}.")
        return suffix, spec, path
    kind, _, name = spec.partition(":")
    if name.startswith("//"):
        raise SourceError(f"{spec}: is an address, and zaq fetches nothing by one; download it, and name the file.")
    if f"{kind}:" in SOURCES:
        return f"{kind}:", name, None
    if "." not in kind and not (Path(f"{kind}.py").is_file() or Path(kind).is_dir() or importlib.util.find_spec(kind)):
        kinds = [k[:-1] for k in SOURCES if k.endswith(":")]
        raise SourceError(f"{spec}: " + unknown("kind of source, or module of a factory,", kind, kinds))
    return "package.module:", name, None
