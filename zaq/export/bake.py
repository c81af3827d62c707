"""A file that takes photographs as they are: uint8 pixels, 0 to 255, red, green, blue, (N, H, W, C) or (N, C, H, W).

What prepares them, (x/255 - mean) / std and the order of channels, becomes the frame of the network
(`zaq.sources.frame`): the network inside stays as it is, float image in and integers from its first QuantizeLinear on.
The arithmetic is that of `zaq.data`, an operation for each of its operations, so that both give equal numbers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from zaq.config.bounds import json_text, plain_json
from zaq.config.card import Card
from zaq.errors import RunError, SourceError, UserError, unknown
from zaq.export.ends import INPUT
from zaq.export.session import run_session, session
from zaq.sources.frame import HOLE
from zaq.sources.interface import Interface
from zaq.sources.layout import NCHW
from zaq.sources.normal import OPSET

__all__ = ["BAKED", "bake", "require_bakeable", "require_same"]

BAKED = ("nhwc", "nchw")
PREPARED = "zaq_prepared"  # begins the names of what is computed before the network


def require_bakeable(card: Card, layout: str) -> None:
    """Raises UserError for a layout that there is not, a model that takes no images, or one whose normalisation
    nobody knows.
    """
    if layout not in BAKED:
        raise UserError("--bake-input: " + unknown("layout", layout, BAKED))
    if len(card.input) != 3 or card.input[0] not in (1, 3):
        raise UserError(f"--bake-input: the model takes {card.input} of a sample, which is no image in colour or grey.")
    if not card.knows_pixels:
        raise UserError(
            "--bake-input: the model's normalisation is unknown, so nothing can be put into the file; quantize it "
            "again with --normalize, or --mean and --std."
        )


def bake(
    translated: ModelProto, frame: bytes | None, interface: Interface, card: Card, layout: str
) -> tuple[bytes, Interface]:
    """The frame and the interface that `zaq.export.onnx.in_form` makes such a file by, of a program that it translated
    and of what stood around the network before.

    Raises SourceError where something else reads the image, or another input has to be given.
    """
    model = _open(translated, interface) if frame is None else onnx.load_model_from_string(frame)
    graph = model.graph
    hole = plain_json(next(p.value for p in model.metadata_props if p.key == HOLE))
    head, image = _head(graph, hole["input"])
    rest = [n for n in graph.node if n not in head]
    behind = {image, *(o for n in head for o in n.output)} - {hole["input"]}
    stored = {t.name for t in graph.initializer}
    if behind.intersection(i for n in rest for i in n.input):
        raise SourceError("--bake-input: what stands behind the network reads the image itself, which would be bytes.")
    if others := [i.name for i in graph.input if i.name not in {image, *hole["outputs"], *stored}]:
        raise SourceError(f"--bake-input: the file takes {', '.join(others)} beside the image; bind it (--bind).")
    sizes = [d.dim_value or d.dim_param for d in translated.graph.input[0].type.tensor_type.shape.dim]
    shape = [sizes[d] for d in (0, 2, 3, 1)] if layout == "nhwc" else sizes
    inputs = [i for i in graph.input if i.name != image]
    nodes, tensors = _prepare(image, hole["input"], card, layout)
    made = helper.make_graph(
        [*nodes, *rest],
        graph.name,
        [helper.make_tensor_value_info(image, TensorProto.UINT8, shape), *inputs],
        list(graph.output),
        [*graph.initializer, *tensors],
    )
    baked = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    helper.set_model_props(baked, {HOLE: json_text(hole)})
    return bytes(baked.SerializeToString()), replace(interface, inputs=())


def require_same(whole: Path, network: Path, pixels: Tensor, card: Card, layout: str) -> None:
    """Raise RunError where the file at `whole` says something else of bytes (N, C, H, W) than the network inside it of
    the same images prepared as the card says.
    """
    run = session(whole, whole=True)
    given = pixels.permute(0, 2, 3, 1) if layout == "nhwc" else pixels
    found = run.run(None, {run.get_inputs()[0].name: np.ascontiguousarray(given.numpy())})
    wanted = run_session(session(network), card.normalised(pixels.flip(1) if card.order == "bgr" else pixels))
    if len(found) != len(wanted):  # what stands behind the network says it in other words
        return
    if wrong := [i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if not np.array_equal(a, b)]:
        raise RunError(f"{whole}: output {wrong[0]} is not what the network says of prepared images. Report it to zaq.")


def _open(translated: ModelProto, interface: Interface) -> ModelProto:
    """The frame of a network that nothing stands around: its image goes in, its outputs come out."""
    names = [o.name for o in translated.graph.output]
    names[: len(interface.outputs)] = [end.name for end in interface.outputs]
    image = interface.inputs[0].name if interface.inputs else INPUT
    kinds = [TensorProto.DataType.Value(end.kind) for end in interface.outputs] or [TensorProto.FLOAT] * len(names)
    ends = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]
    network = helper.make_tensor_value_info(f"{PREPARED}_{image}", TensorProto.FLOAT, None)
    entry = helper.make_tensor_value_info(image, TensorProto.FLOAT, None)
    cast = helper.make_node("Cast", [image], [network.name], to=TensorProto.FLOAT)
    graph = helper.make_graph([cast], "frame", [entry, *ends], [*ends, network])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    helper.set_model_props(model, {HOLE: json_text({"input": network.name, "outputs": names})})
    return model


def _head(graph: onnx.GraphProto, network: str) -> tuple[list[NodeProto], str]:
    """The nodes between the image and the network's input, and what the image is called."""
    makers = {o: n for n in graph.node for o in n.output}
    head, name = list[NodeProto](), network
    while name in makers:
        head.append(makers[name])
        name = makers[name].input[0]
    return head, name


def _prepare(image: str, network: str, card: Card, layout: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """From bytes to what the network reads."""
    tensors = {
        "255": np.array(255, np.float32),
        "mean": np.array(card.mean, np.float32).reshape(1, -1, 1, 1),
        "std": np.array(card.std, np.float32).reshape(1, -1, 1, 1),
    }
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if layout == "nhwc":
        steps.append(("Transpose", [], {"perm": NCHW}))
    if card.order == "bgr":
        tensors["order"] = np.arange(card.input[0])[::-1].copy()
        steps.append(("Gather", ["order"], {"axis": 1}))
    steps += [
        ("Cast", [], {"to": TensorProto.FLOAT}),
        ("Div", ["255"], {}),
        ("Sub", ["mean"], {}),
        ("Div", ["std"], {}),
    ]
    names = [image, *(f"{PREPARED}_{i}" for i in range(1, len(steps))), network]
    nodes = [
        helper.make_node(kind, [names[i], *(f"{PREPARED}_{other}" for other in others)], [names[i + 1]], **attributes)
        for i, (kind, others, attributes) in enumerate(steps)
    ]
    return nodes, [numpy_helper.from_array(values, f"{PREPARED}_{name}") for name, values in tensors.items()]
