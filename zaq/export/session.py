"""A file in onnxruntime."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from torch import Tensor

from zaq.errors import SourceError
from zaq.export.onnx import INPUT

__all__ = ["properties", "run_session", "session"]


def session(model: Path | bytes, threads: int = 0, optimized: Path | None = None) -> ort.InferenceSession:
    """A file, or a file's content, in onnxruntime on the CPU; `optimized`: where to write what it makes of it.

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
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
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


def run_session(run: ort.InferenceSession, images: Tensor) -> list[NDArray[np.float32]]:
    """The outputs for a batch of normalised images (N, C, H, W)."""
    return list(run.run(None, {INPUT: images.contiguous().numpy()}))
