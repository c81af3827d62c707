"""Sources that are nearly spelt right, and kinds of files that another program turns into one that zaq reads: the
sentence for each.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["folder", "missing", "route"]

LIBRARIES = ("timm", "torchvision")
ONNX_OF_TF = "python -m tf2onnx.convert --{} {} --output model.onnx makes an ONNX file of it"
# Files of other programs, and the way from there.
ROUTES = {
    ".tflite": ONNX_OF_TF.format("tflite", "IT"),
    ".keras": "model.export('saved', format='onnx') of Keras 3.10 and later makes an ONNX file of it",
    ".h5": "load it in Keras; model.export('model.onnx', format='onnx') makes an ONNX file of it",
    ".pb": ONNX_OF_TF.format("saved-model", "ITS_FOLDER"),
    ".ckpt": "a checkpoint of a training; save its weights alone as .safetensors, and say --arch",
    ".bin": "save the weights as .safetensors, and say --arch; of an OpenVINO model take the ONNX file it came from",
    ".xml": "an OpenVINO model is made from a float one, often an ONNX file; take that",
    ".engine": "a TensorRT engine is compiled for one GPU; take the float ONNX file it was made from",
    ".plan": "a TensorRT engine is compiled for one GPU; take the float ONNX file it was made from",
    ".trt": "a TensorRT engine is compiled for one GPU; take the float ONNX file it was made from",
    ".mlmodel": "a Core ML model is made from a float one of torch or Keras; take that",
    ".mlpackage": "a Core ML model is made from a float one of torch or Keras; take that",
    ".ort": "the .ort form is for devices alone; take the .onnx file it was made from",
    ".pdmodel": "paddle2onnx --model_dir ITS_FOLDER --save_file model.onnx makes an ONNX file of it",
    ".caffemodel": "convert it to ONNX or torch first; weights in torch go with --arch",
    ".zip": "unpack it, and name the model's file in it",
    ".gz": "unpack it, and name the model's file in it",
    ".tar": "unpack it, and name the model's file in it",
    ".py": "is code; name the function in it that makes the network, as {stem}:make, from the folder it is in",
    ".json": "a card says how images are prepared; name the model's file beside it",
}
PLAIN = re.compile(r"[A-Za-z][\w.-]*")


def missing(spec: str, kinds: Iterable[str], shipped: Iterable[str]) -> str:
    """What a name that is no file, and begins with no kind, was likely meant to be; "" where nobody can tell."""
    owner, slash, name = spec.partition("/")
    if owner in LIBRARIES and slash and PLAIN.fullmatch(name):
        return f"{owner}:{name}"
    suffix = Path(spec).suffix.lower()
    if suffix in kinds or suffix in ROUTES:
        there = [p.name for p in Path(spec).parent.glob("*") if p.suffix.lower() == suffix]
        near = difflib.get_close_matches(Path(spec).name, there, n=1)
        return str(Path(spec).with_name(near[0])) if near else ""
    if PLAIN.fullmatch(spec):
        near = difflib.get_close_matches(spec, list(shipped), n=1, cutoff=0.8)
        return f"zoo:{near[0]}" if near else f"timm:{spec}"
    return f"hf-hub:{spec}" if PLAIN.fullmatch(owner) and PLAIN.fullmatch(name) else ""


def folder(path: Path, kinds: Iterable[str]) -> str:
    """What is said of a folder that was named as a model."""
    if (path / "quantized.pt2").is_file():
        return f"is a run, quantized already; zaq verify {path} checks it, and its options.json says what it came from"
    if (path / "saved_model.pb").is_file():
        return f"is a SavedModel of TensorFlow; {ONNX_OF_TF.format('saved-model', path)}"
    there = sorted(p.name for p in path.iterdir() if p.suffix.lower() in kinds)
    if (path / "config.json").is_file() and any(name.endswith((".safetensors", ".bin")) for name in there):
        return f"is a folder of weights and their config; name the weights, {path / there[0]}, and say --arch"
    return (
        f"is a folder; name the file in it: {', '.join(there[:5])}" if there else "is a folder, and no model is in it"
    )


def route(path: Path) -> str:
    """How a file of another program comes to be one that zaq reads; "" where nobody can tell."""
    return ROUTES.get(path.suffix.lower(), "").format(stem=path.stem)
