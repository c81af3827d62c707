"""Float ONNX files of somebody else's, of one layer or two each, whose answers can be said beforehand."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from PIL import Image, ImageDraw

YOLO = {"kind": "yolov3", "heads": [{"anchors": [[4, 8]]}], "names": ["cat", "dog"]}
SSD = {"kind": "ssd", "heads": [{"grid": [2, 2], "boxes": [[0.25, 0.5]]}], "names": ["cat", "dog"]}


def half(folder: Path) -> Path:
    """A photograph of 64 x 32 pixels whose left half is red and whose right half is black."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255
    Image.fromarray(pixels).save(folder / "half.png")
    return folder / "half.png"


def ship(path: Path) -> Path:
    """A drawing of a ship that the shipped network knows for one, 320 x 320."""
    image = Image.new("RGB", (320, 320), (176, 206, 232))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 205, 320, 320), fill=(44, 86, 122))  # sea
    pen.polygon([(30, 180), (290, 180), (262, 238), (62, 238)], fill=(120, 38, 34))  # hull
    for box, colour in (((62, 140, 230, 180), (238, 238, 232)), ((92, 104, 190, 140), (228, 228, 224))):
        pen.rectangle(box, fill=colour)
    pen.rectangle((120, 58, 146, 104), fill=(200, 60, 44))  # funnel
    pen.line((210, 50, 210, 180), fill=(60, 60, 60), width=7)
    image.save(path)
    return path


def network(path: Path, *layers: NodeProto, outputs: tuple[str, ...] = ("output",), **weights: Any) -> Path:
    """A file that takes (1, 3, 16, 16) as `input`. Weights of whole numbers alone are stored as such."""
    taken = helper.make_tensor_value_info("input", 1, (1, 3, 16, 16))
    given = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    kinds = {name: np.int64 if name.startswith("shape") else np.float32 for name in weights}
    stored = [numpy_helper.from_array(np.array(v, kinds[name]), name) for name, v in weights.items()]
    graph = helper.make_graph(list(layers), "theirs", [taken], given, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def yolo(path: Path) -> Path:
    """A head of 2 x 2 cells that finds the second of two classes where it sees red, a box of (4, 8) in each."""
    weight = np.zeros((7, 3, 8, 8))
    weight[4, 0], weight[6, 0] = 1, 1  # object, and the second class
    convolution = helper.make_node("Conv", ["input", "w", "b"], ["output"], strides=[8, 8])
    return network(path, convolution, w=weight, b=[0, 0, 0, 0, -32, -9, -32])


def ssd(path: Path) -> Path:
    """The same of default boxes: their offsets are 0, and the second class is likely where there is red."""
    weight = np.zeros((7, 3, 8, 8))
    weight[6, 0] = 1
    layers = [
        helper.make_node("Conv", ["input", "w", "b"], ["heads"], strides=[8, 8]),
        helper.make_node("Transpose", ["heads"], ["cells"], perm=[0, 2, 3, 1]),
        helper.make_node("Split", ["cells", "shape_parts"], ["t", "logits"], axis=3),
        helper.make_node("Reshape", ["t", "shape_t"], ["boxes"]),
        helper.make_node("Reshape", ["logits", "shape_logits"], ["scores"]),
    ]
    shapes = {"shape_parts": [4, 3], "shape_t": [1, 4, 4], "shape_logits": [1, 4, 3]}
    return network(path, *layers, outputs=("boxes", "scores"), w=weight, b=[0, 0, 0, 0, 0, -9, -32], **shapes)


def segmenter(path: Path) -> Path:
    """A point convolution that tells red, class 1, from black."""
    weight = np.zeros((2, 3, 1, 1))
    weight[1, 0] = 1
    return network(path, helper.make_node("Conv", ["input", "w", "b"], ["output"]), w=weight, b=[0.5, 0])


def negative(path: Path) -> Path:
    """White becomes black, where pixels lie from -1 to 1."""
    return network(path, helper.make_node("Neg", ["input"], ["output"]))
