"""A file in onnxruntime."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from zaq.errors import SourceError
from zaq.sources.frame import network_of
from zaq.sources.interface import KINDS

__all__ = ["batch_of", "feed", "properties", "run_session", "session", "taken", "takes"]

Values = NDArray[Any]


def session(
    model: Path | bytes,
    threads: int = 0,
    optimized: Path | None = None,
    whole: bool = False,
    profile: Path | None = None,
) -> ort.InferenceSession:
    """A file, or a file's content, in onnxruntime on the CPU; `optimized`: where to write what it makes of it.
    `profile`: what the file begins with that `end_profiling` writes and names.

    Of a file with a frame (`zaq.sources.frame`) the network inside, which takes and gives what others do; `whole`: the
    file as a program meets it.
    Raises SourceError if it is not readable as ONNX.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.qdqisint8allowed", "1"
    )  # else x86 turns some int8 tensors into uint8, and not others
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Each session has threads of its own: none may go on spinning on a core that the next one's run needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes() if model.suffix == ".onnx" else b""
        inner = content if whole else network_of(content)
        given = inner if isinstance(model, bytes) or inner is not content else str(model)
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"{'the model' if isinstance(model, bytes) else model}: onnxruntime cannot load it: {reason}"
        ) from error


def properties(path: Path) -> dict[str, str]:
    """What a file says of itself beside its graph. Raises SourceError where that is no text, or as `session` does."""
    try:
        return dict(session(path).get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: its properties are not in UTF-8 ({error}); the file is damaged.") from error


def batch_of(run: ort.InferenceSession) -> int | None:
    """How many images a file takes at once; None for any number."""
    size = run.get_inputs()[0].shape[0]
    return size if isinstance(size, int) and size > 0 else None


def takes(run: ort.InferenceSession, image: tuple[int, ...]) -> bool:
    """Whether a file takes images of (C, H, W)."""
    shape = run.get_inputs()[0].shape[1:]
    return len(shape) == len(image) and all(not isinstance(s, int) or s == i for s, i in zip(shape, image, strict=True))


def feed(run: ort.InferenceSession, images: Tensor) -> dict[str, Values]:
    """Images (N, C, H, W) by the name of a file's input, in the type that it takes: rounded where that is integers."""
    image = run.get_inputs()[0]
    kind, values = np.dtype(KINDS[image.type]), images.contiguous().numpy()
    if np.issubdtype(kind, np.integer):
        values = np.rint(values).clip(np.iinfo(kind).min, np.iinfo(kind).max)
    return {image.name: values.astype(kind)}


def taken(run: ort.InferenceSession, images: Tensor) -> Tensor:
    """Images (N, C, H, W) as the nearest that a file can be given, which may take halves or whole numbers; float32."""
    (values,) = feed(run, images).values()
    return torch.from_numpy(values.astype(np.float32))


def run_session(run: ort.InferenceSession, images: Tensor, outputs: list[str] | None = None) -> list[Values]:
    """The outputs, or those named, for a batch of normalised images (N, C, H, W). A file of a fixed batch is run as
    often as it takes, and its outputs are put one behind another.

    Raises SourceError for images of a size that the file does not take.
    """
    shape = run.get_inputs()[0].shape
    if not takes(run, tuple(images.shape[1:])):
        raise SourceError(
            f"the file takes images of {_sizes(shape[1:])}, and was to be run on {_sizes(images.shape[1:])}."
        )
    ((name, values),) = feed(run, images).items()
    count, size = len(images), batch_of(run) or len(images)
    padded = np.concatenate([values, *[values[-1:]] * (-count % size)])
    parts = [run.run(outputs, {name: part}) for part in np.split(padded, len(padded) // size)]
    return list(parts[0]) if count == size else [np.concatenate(o)[:count] for o in zip(*parts, strict=True)]


def _sizes(shape: Iterable[object]) -> str:
    return "x".join(str(s) if isinstance(s, int) else "any" for s in shape)
