"""Three programs that call a file, in Python, JavaScript and C++, written beside it: short, whole, and to be copied."""

import json
from pathlib import Path
from typing import Any

import jinja2
import onnx

from zaq.config.card import Card
from zaq.config.labels import labels_text

__all__ = ["LABELS", "usage_files"]

LABELS = "labels.txt"
TEMPLATES = Path(__file__).with_name("templates")
LANGUAGES = ("py", "js", "cpp")
KINDS = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.UINT8: "uint8"}
KERNELS = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}  # as sharp calls them


def usage_files(path: Path, card: Card, baked: str | None = None) -> dict[str, str]:
    """What goes beside the file at `path`, name -> text: usage.py, usage.js and usage.cpp (of model.nhwc.onnx:
    usage.nhwc.py, ...), and labels.txt where the classes have names.

    `baked`: the layout of a file that normalises images itself (`zaq.export.bake`). Empty but for the labels where the
    file takes something else than one image of floats or bytes, or nobody knows how it is normalised.
    """
    labels = {LABELS: labels_text(card.class_names)} if card.class_names else {}
    facts = _facts(path, card, baked)
    if facts is None:
        return labels
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # it is code, and all that is put in are numbers and the file's name, quoted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = json.dumps
    part = path.stem.removeprefix("model")
    found = {}
    for language in LANGUAGES:
        name = f"usage{part if not part or part[0] == '.' else f'.{part}'}.{language}"
        found[name] = environment.get_template(f"usage.{language}.j2").render(usage=name, file=path.name, **facts)
    return found | labels


def _facts(path: Path, card: Card, baked: str | None) -> dict[str, Any] | None:
    """What the programs have to know; None where they could not be right."""
    graph = onnx.load_model(path, load_external_data=False).graph
    stored = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in stored]
    kind = KINDS.get(inputs[0].type.tensor_type.elem_type) if len(inputs) == 1 else None
    first = inputs[0].type.tensor_type.shape.dim[0].dim_value if kind else 0
    if kind is None or first > 1 or len(card.input) != 3 or card.input[0] not in (1, 3) or not card.knows_pixels:
        return None
    channels, height, width = card.input
    sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    layout = baked or ("nhwc" if sizes[3] == channels != sizes[1] else "nchw")
    whole = card.crop is None and card.resize in (None, height)
    return {
        "bgr": card.order == "bgr" and baked is None,
        "channels": channels,
        "classes": (card.task or "classification") == "classification" and len(graph.output) == 1,
        "height": height,
        "interpolation": card.interpolation,
        "kernel": KERNELS[card.interpolation],
        "kind": kind,
        "layout": layout,
        "mean": list(card.mean or ()),
        "normalised": kind == "float32",
        "resize": None if whole else card.resize or card.crop or height,
        "shape": [1, height, width, channels] if layout == "nhwc" else [1, channels, height, width],
        "std": list(card.std or ()),
        "width": width,
    }
