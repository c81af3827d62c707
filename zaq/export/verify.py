"""Is the file the student? Both are run on the same samples and compared, step by step of the output's grid."""

import collections
import json
import math
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zaq.errors import SourceError
from zaq.export.onnx import INPUT

__all__ = ["Parity", "compare", "kernels", "run_session", "session"]

FLOAT_KERNELS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool",
                 "ReduceMean", "BatchNormalization"}  # fmt: skip
BATCH = 50


@dataclass(frozen=True)
class Parity:
    """How the ONNX file in onnxruntime differs from the checkpoint in torch.

    Differences count in steps: of the output's grid where the output is quantized, else of a 256th of its range.
    """

    samples: int
    largest_difference: float
    share_equal: float
    share_one_step: float
    share_worse: float
    step: float
    top1_agreement: float | None  # of the outputs' largest entries; None where there are no classes
    kernels: dict[str, int] = field(default_factory=dict)
    float_kernels: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        top1 = "" if self.top1_agreement is None else f"; top-1 agrees on {100 * self.top1_agreement:.2f} %"
        return (
            f"{self.samples} samples: largest difference {self.largest_difference:.3g}; {100 * self.share_equal:.2f} % of "
            f"elements equal, {100 * self.share_one_step:.2f} % off by one step ({self.step:.3g}), "
            f"{100 * self.share_worse:.2f} % by more{top1}"
        )


def session(path: Path, threads: int = 0, optimized: Path | None = None, exact: bool = False) -> ort.InferenceSession:
    """The file in onnxruntime, on the CPU. Raises SourceError if it is not readable as ONNX.

    int8 activations stay int8: on x86 onnxruntime makes some of them uint8 unless told otherwise, and then runs neither
    as integers. `exact`: without the saturation of uint8 x int8 products on x86 without VNNI; for uint8 activations only.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision" if exact else "session.qdqisint8allowed", "1")
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if optimized:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"{path}: onnxruntime cannot load it: {reason}") from error


def run_session(run: ort.InferenceSession, images: Tensor) -> list[NDArray[np.float32]]:
    """The outputs for a batch of normalised images (N, C, H, W)."""
    return list(run.run(None, {INPUT: images.contiguous().numpy()}))


@torch.no_grad()
def compare(path: Path, student: nn.Module, samples: Tensor) -> Parity:
    """Run `samples` (N, C, H, W) through the file and through the student."""
    run = session(path, exact=_meant_for_others(path))
    found: list[NDArray[np.float32]] = []
    expected: list[NDArray[np.float32]] = []
    same_top1: list[NDArray[np.bool_]] = []
    for batch in samples.split(BATCH):
        ours = [t.numpy() for t in pytree.tree_leaves(student(batch))]
        theirs = run_session(run, batch)
        expected.append(np.concatenate([a.ravel() for a in ours]))
        found.append(np.concatenate([a.ravel() for a in theirs]))
        if len(ours) == 1 and ours[0].ndim == 2:
            same_top1.append(ours[0].argmax(1) == theirs[0].argmax(1))
    a, b = np.concatenate(expected), np.concatenate(found)
    step = max(_output_step(path) or float(a.max() - a.min()) / 256, 1e-12)
    steps = np.abs(a - b) / step
    counts = kernels(path)
    return Parity(
        samples=len(samples),
        largest_difference=float(np.abs(a - b).max()),
        share_equal=float((steps < 0.01).mean()),
        share_one_step=float(((steps >= 0.01) & (steps < 1.01)).mean()),
        share_worse=float((steps >= 1.01).mean()),
        step=step,
        top1_agreement=float(np.concatenate(same_top1).mean()) if same_top1 else None,
        kernels=counts,
        float_kernels=[k for k in counts if k in FLOAT_KERNELS],
    )


def kernels(path: Path) -> dict[str, int]:
    """The operations that onnxruntime runs after its own optimisation, and how often each: QLinearConv, Clip, ..."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, optimized=optimized)
        return dict(collections.Counter(n.op_type for n in onnx.load(optimized).graph.node).most_common())


def _meant_for_others(path: Path) -> bool:
    """Whether a file with uint8 activations is for another runtime, whose kernels do not saturate where ours may."""
    try:
        model = onnx.load(path)
    except Exception:  # session says what is wrong with it
        return False
    zeros = {t.name: t.data_type for t in model.graph.initializer}
    signed = any(zeros.get(n.input[2]) == onnx.TensorProto.INT8 for n in model.graph.node if n.op_type == "QuantizeLinear")
    target = next((json.loads(p.value) for p in model.metadata_props if p.key == "zaq.target"), "onnxruntime")
    return not signed and target != "onnxruntime"


def _output_step(path: Path) -> float | None:
    """The scale of the last DequantizeLinear, if the output comes straight from one; None for a float output."""
    graph = onnx.load(path).graph
    makers = {o: n for n in graph.node for o in n.output}
    maker = makers.get(graph.output[0].name)
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    scale = next((onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == maker.input[1]), None)
    return None if scale is None or not math.isfinite(float(scale.max())) else float(scale.max())
