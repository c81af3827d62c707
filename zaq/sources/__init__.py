"""Where a model comes from: a name or a path in, (graph, card) out. Nothing is unpickled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from zaq.config.names import DEFAULT, is_file, kind_of
from zaq.errors import SourceError, unknown
from zaq.ir.nodes import output_nodes, shape_of
from zaq.sources.base import Request, Source
from zaq.sources.factory import read_factory
from zaq.sources.layout import LAYOUTS
from zaq.sources.libraries import read_hub, read_timm, read_torchvision
from zaq.sources.onnx import read_onnx
from zaq.sources.program import read_program, read_program_source, read_pt2
from zaq.sources.weights import read_weights, read_zoo, refuse_pickle

__all__ = ["DEFAULT", "SOURCES", "Kind", "Source", "is_file", "load", "read_program", "read_pt2"]

NAMED = (None, "classification", "segmentation")  # tasks whose one output has a channel a class


class Kind(NamedTuple):
    """How a kind of source is read, and which of --arch, --kwargs, --random-weights, --bind, --dynamic and --layout it
    has a use for."""

    read: Callable[[Request], Source]
    takes: tuple[str, ...] = ()


# By how a source is spelt, as `zaq.config.names` has it.
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
    kind, name, path = kind_of(spec)
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
    return replace(source, interface=replace(source.interface, classes=_names(spec, source)))


def _names(spec: str, source: Source) -> tuple[str, ...]:
    """What the classes of a source are called; a detector's names may stand among its decoding constants.

    Raises SourceError where the network has another number of classes.
    """
    names = source.card.class_names
    if not names and isinstance(decoded := (source.card.decode or {}).get("names"), list):
        return tuple(map(str, decoded))
    outputs = [shape_of(node) for node in output_nodes(source.graph)]
    alone = outputs[0] if len(outputs) == 1 and source.card.task in NAMED else None
    if names and alone and len(alone) in (1, 3) and isinstance(alone[0], int) and alone[0] != len(names):
        raise SourceError(
            f"{spec}: {len(names)} class names (its card's class_names, or --labels), and the network tells {alone[0]} "
            "classes apart; one name each is needed, in order."
        )
    return names
