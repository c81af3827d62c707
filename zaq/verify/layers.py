"""Layer by layer: the file in onnxruntime and the checkpoint in torch, against the integer referee.

What is compared is what each quantizer writes, as integers. A layer that parts hands its difference on, so the first
one that does is the one to look at.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.memory import at_once
from zaq.errors import SourceError
from zaq.export.ends import behind_casts, declare, inner
from zaq.export.session import run_session, session, taken
from zaq.ir.nodes import attribute, output_nodes
from zaq.ir.taps import with_taps
from zaq.sources.frame import network_of
from zaq.verify.integer import Execution, execute
from zaq.verify.parity import Parity

__all__ = ["LEAST_SQNR", "SAMPLES", "Layer", "Shares", "compare_in_parts", "compare_layers", "fault", "summary"]


LEAST_SQNR = 20.0  # dB between a file's outputs and its checkpoint's: see `fault`
SAMPLES = 16  # as many show what a layer does; the referee is no fast path
TOGETHER = 2**18  # values of samples that are run at once: all that is made of them is kept, in 64 bits


@dataclass(frozen=True)
class Shares:
    """Of the elements of two integer tensors: equal, one step apart,
    further apart; and apart but not because of a tie."""

    equal: float
    one_step: float
    worse: float
    unexplained: float = 0.0

    def __str__(self) -> str:
        return f"{100 * self.equal:.4f} % equal, {100 * self.worse:.4f} % off by more than one step"

    @classmethod
    def of(cls, a: NDArray[np.int64], b: NDArray[np.int64], ties: NDArray[np.bool_]) -> "Shares":
        """`ties`: what may be rounded either way, so that it explains a difference of one step."""
        apart = np.abs(a - b)
        unexplained = (apart > 1) | ((apart == 1) & ~ties)
        return cls(
            float((apart == 0).mean()), float((apart == 1).mean()), float((apart > 1).mean()), float(unexplained.mean())
        )


@dataclass(frozen=True)
class Layer:
    """What a quantizer writes, in the file and in the checkpoint, against the referee."""

    node: str  # the quantizer's, in the checkpoint's graph
    name: str
    bits: int
    file: Shares
    checkpoint: Shares

    def __str__(self) -> str:
        file, checkpoint = (
            f"{100 * s.equal:.4f} % equal, {100 * s.worse:.4f} % off by more than one step"
            for s in (self.file, self.checkpoint)
        )
        return f"{self.name} ({self.bits} bits): file {file}; checkpoint {checkpoint}"


def compare_layers(path: Path, checkpoint: GraphModule, samples: Tensor) -> tuple[list[Layer], Execution]:
    """Every quantized tensor of the graph, in order, for `samples` (N, C, H, W); and what the referee found.

    `path` is a file in the qdq or packed form. Raises SourceError where it does not hold the checkpoint's tensors.
    """
    samples = taken(session(path), samples)
    referee = execute(checkpoint, samples)
    names = list(referee.integers)
    with torch.no_grad():
        values = with_taps(checkpoint, names)(samples)[1]
    nodes = {n.name: n for n in checkpoint.graph.nodes}
    found = _written(path, checkpoint, names, samples)
    layers = []
    for name, value in zip(names, values, strict=True):
        if name not in found:
            continue
        scale, zero_point, _, low, high = nodes[name].args[1:]
        step, zero = (attribute(checkpoint, a.target) for a in (scale, zero_point))
        simulated = ((value / step).round().long() + zero).numpy()
        expected, ties = referee.integers[name].numpy(), referee.ties[name].numpy()
        bits = (high - low).bit_length()
        label = str(scale.target).removeprefix("quant.").removesuffix(".scale")
        layers.append(
            Layer(name, label, bits, Shares.of(found[name], expected, ties), Shares.of(simulated, expected, ties))
        )
    return layers, referee


def compare_in_parts(path: Path, checkpoint: GraphModule, samples: Tensor) -> list[Layer]:
    """The same layers, where what all of them write for all samples may be too much at once."""
    parts = samples.split(at_once(TOGETHER, samples.shape[1:]))
    found = [compare_layers(path, checkpoint, part)[0] for part in parts]
    sizes = [len(part) for part in parts]

    def mean(shares: Sequence[Shares]) -> Shares:
        rows = zip(*(astuple(s) for s in shares), strict=True)
        return Shares(*(sum(n * x for n, x in zip(sizes, row, strict=True)) / len(samples) for row in rows))

    return [
        replace(same[0], file=mean([x.file for x in same]), checkpoint=mean([x.checkpoint for x in same]))
        for same in zip(*found, strict=True)
    ]


def summary(layers: list[Layer], every: bool = False) -> list[str]:
    """Lines for a terminal: how many layers are equal to the referee's in all elements, and the first that is not."""
    lines = []
    for who in ("file", "checkpoint"):
        apart = [x for x in layers if getattr(x, who).equal < 1]
        where = f"; they part first at {apart[0].name}: {getattr(apart[0], who)}" if apart else ""
        lines.append(
            f"{who} against integer arithmetic: {len(layers) - len(apart)} of {len(layers)} quantized tensors "
            f"equal{where}"
        )
    return lines + ([str(layer) for layer in layers] if every else [])


def fault(path: Path, parity: Parity, checkpoint: GraphModule, samples: Tensor) -> str:
    """A sentence against a file that is not its checkpoint, with the layer at which they part first; "" for one that
    is.

    A file is another network where its outputs are NaN or infinite, or nearer than LEAST_SQNR dB to their difference
    from the checkpoint's. What lies half-way between two steps may be rounded to either side, though, and a deep
    network of random weights makes much of one such step: where nothing but such ties stands at the beginning, the
    file is as good as the checkpoint.
    """
    if parity.sqnr is not None and parity.sqnr >= LEAST_SQNR:
        return ""
    apart = "hold NaN or infinities" if parity.sqnr is None else f"differ grossly ({parity.sqnr:.1f} dB)"
    told = f"{path}: is not its checkpoint: their outputs {apart}, where {LEAST_SQNR:g} dB or more are asked"
    if path.suffix != ".onnx":
        return f"{told}. zaq export --format qdq shows whether it is this form alone."
    try:
        layers = compare_in_parts(path, checkpoint, samples[:SAMPLES])
    except SourceError:
        return f"{told}. It does not hold the checkpoint's tensors one by one, as the forms qdq and packed do."
    parted = [x for x in layers if min(x.file.equal, x.checkpoint.equal) < 1]
    if not parted:
        return f"{told}; every quantized tensor is equal, so that they part behind the last of them."
    first = parted[0]
    only_ties = parity.sqnr is not None and not max(first.file.unexplained, first.checkpoint.unexplained) > 0
    return "" if only_ties else f"{told}; they part first at {first}."


def _written(path: Path, checkpoint: GraphModule, names: list[str], samples: Tensor) -> dict[str, NDArray[np.int64]]:
    """The integers that stand before the DequantizeLinear of each quantizer in the file, by the quantizer's node.

    A quantizer repeated behind what only moves values may be gone (`integers.move_integers`), and so may one of two
    that quantize the same. Both have the scale of another that is there.
    """
    model = onnx.load_model_from_string(network_of(path.read_bytes()))
    declare(model, "batch")
    outputs = dict(zip((n.name for n in output_nodes(checkpoint)), behind_casts(model.graph), strict=True))
    dequantized = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    scales = {n.name: attribute(checkpoint, n.args[1].target).item() for n in checkpoint.graph.nodes if n.name in names}
    held = {scales[name] for name in names if dequantized.keys() & {outputs.get(name, name), inner(name)}}
    tensors: dict[str, str] = {}
    for name in names:
        node = dequantized.get(outputs.get(name, name)) or dequantized.get(inner(name))
        if node is None and scales[name] in held:
            continue
        if node is None:
            raise SourceError(
                f"{path}: holds no tensor {name!r}; it was not exported from this checkpoint in the qdq or packed form."
            )
        tensors[name] = node.input[0]
        if node.input[0] not in {o.name for o in model.graph.output}:
            model.graph.output.append(helper.make_tensor_value_info(node.input[0], kinds[node.input[2]], None))
    if not tensors:
        return {}
    values = run_session(session(model.SerializeToString()), samples, list(tensors.values()))
    return {name: value.astype(np.int64) for name, value in zip(tensors, values, strict=True)}
