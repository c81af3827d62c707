"""What each layer alone costs: it as it was quantized, everything else in float, on the synthetic samples.

The measure is that of ZeroQ's equation 5 (Cai et al. 2020), for what came out of a run: KL(P || P with this layer
quantized), where the outputs are classes. Here the layer is its quantized weight and bias, and what it reads, rounded.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.engine.journal import Journal
from zaq.engine.state import State
from zaq.ir.nodes import attribute
from zaq.quant.asked import layer_name
from zaq.quant.fake_quantize import FakeQuantize
from zaq.stats.mixed import divergence, outputs_on

__all__ = ["sensitivity"]

PASSES = 640  # images that go through the network in all: about 3 % of a `fast` run
MOST, LEAST = 32, 4  # images a layer


@torch.no_grad()
def sensitivity(state: State, journal: Journal) -> dict[str, Any] | None:
    """Of each layer alone the divergence of the outputs, worst first: `images`, how many were looked at; `held_out`,
    whether none of them was learned on; `classes`, whether it is a KL divergence (in nats) or, of other outputs, the
    noise as a share of the signal; `layers`, each with `module`, `weight`, `bits`, `reads_bits` and `loss`, None
    where it is no number.

    A tensor that several layers read is rounded for all of them. None where there are no samples, or no time: Ctrl-C.
    """
    if state.samples is None or journal.interrupted:
        return None
    placed = state.student.placement
    count = min(max(PASSES // max(len(placed.layers), 1), LEAST), MOST, len(state.samples))
    images, batch = state.samples[:count], state.task.batch
    alone = _Alone(state)
    clean, nodes = outputs_on(alone.module, images, batch), {n.name: n for n in state.task.teacher.graph.nodes}
    rows, names = list[dict[str, Any]](), list(placed.layers)
    for i in journal.progress.track("sensitivity of layers", len(names)):
        reads, weight = placed.layers[names[i]]
        with_one = alone.outputs(names[i], images, batch)
        gaps = [divergence(p, q) for p, q in zip(clean, with_one, strict=True) if p.is_floating_point()]
        rows.append(
            {
                "module": layer_name(nodes[names[i]]),
                "weight": weight,
                "bits": placed.weights[weight].bits,
                "reads_bits": placed.activations[reads].bits if reads else None,
                "loss": loss if math.isfinite(loss := sum(gaps) / max(len(gaps), 1)) else None,
            }
        )
    rows.sort(key=lambda row: -math.inf if row["loss"] is None else -row["loss"])
    classes = all(p.dim() == 2 for p in clean)
    return {"images": count, "held_out": state.held_out, "classes": classes, "layers": rows}


class _Alone:
    """A student's graph with the teacher's parameters, nothing of it rounded, until one layer is."""

    def __init__(self, state: State) -> None:
        self.student, self.placed = state.student.module, state.student.placement
        self.module: GraphModule = copy.deepcopy(self.student)
        for name, value in state.task.teacher.state_dict().items():
            attribute(self.module, name).copy_(value)
        for quantizer in self._quantizers():
            quantizer.enable_fake_quant(False)

    def outputs(self, layer: str, images: Tensor, batch: int) -> list[Tensor]:
        """The network's outputs with this layer quantized."""
        reads, weight = self.placed.layers[layer]
        taken = [weight, *self.placed.biases.get(weight, ())]
        kept = {name: attribute(self.module, name).clone() for name in taken}
        used = [self._quantizer(self.placed.keys[weight]), *([self._quantizer(reads)] if reads else [])]
        for name in taken:
            attribute(self.module, name).copy_(attribute(self.student, name))
        for quantizer in used:
            quantizer.enable_fake_quant(True)
        try:
            return outputs_on(self.module, images, batch)
        finally:
            for quantizer in used:
                quantizer.enable_fake_quant(False)
            for name, value in kept.items():
                attribute(self.module, name).copy_(value)

    def _quantizer(self, key: str) -> FakeQuantize:
        found = self.module.get_submodule(f"quant.{key}")
        assert isinstance(found, FakeQuantize)
        return found

    def _quantizers(self) -> list[FakeQuantize]:
        return [m for m in self.module.modules() if isinstance(m, FakeQuantize)]
