"""The student: a copy of the teacher with quantizers on its edges, and what is always true of it.

Its promises: every scale that is read leaves room for an integer kernel's accumulators (`FakeQuantize.step`), whatever
was learned; and what `restore` puts back is what `snapshot` took.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.ir.nodes import attribute
from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.placement import place
from zaq.quant.stored import rounded

__all__ = ["Snapshot", "Student"]

Snapshot = dict[str, Tensor]


class Exponential(nn.Module):
    """What is positive, made of what is any number: its logarithm."""

    def forward(self, logarithm: Tensor) -> Tensor:
        """(channels,) -> (channels,)"""
        return logarithm.exp()

    def right_inverse(self, scale: Tensor) -> Tensor:
        """The logarithm that `forward` makes a scale of."""
        return scale.log()


class Student:
    """A network being quantized: `module` computes, `placement` names its quantizers.

    Args:
        teacher: a folded graph; it is copied.
        qconfig, card: bits and where they go; what is known of the input.
        search: weight grids of the least error, else over the whole range (see `FakeQuantize.fit_weight`).
        unlike: what leaves the graph and is too unlike for one scale (see `quant.alike`).
    """

    def __init__(
        self, teacher: GraphModule, qconfig: QConfig, card: Card, search: bool = True, unlike: Collection[str] = ()
    ) -> None:
        self.module, self.placement = place(teacher, qconfig, card, search, unlike)
        self.module.requires_grad_(True)

    def __call__(self, images: Tensor) -> Tensor:
        """What the network computes of images (N, C, H, W)."""
        outputs: Tensor = self.module(images)
        return outputs

    def weight(self, name: str) -> Tensor:
        """The weight of that name, before its quantizer."""
        return attribute(self.module, name)

    def fit_weights(self, search: bool) -> None:
        """Set every weight's grid anew (see `FakeQuantize.fit_weight`)."""
        for name, quantizer in self.placement.weights.items():
            quantizer.fit_weight(self.weight(name), search)

    def watch(self, observer: str) -> None:
        """Let activations pass unrounded, watched by one of OBSERVERS, until `freeze`."""
        for quantizer in self.placement.activations.values():
            quantizer.watch(observer)

    @contextmanager
    def watching(self, observer: str = "mse") -> Iterator[None]:
        """Inside, activations pass unrounded and one of OBSERVERS watches them; afterwards their ranges are frozen."""
        self.watch(observer)
        try:
            yield
        finally:
            self.freeze()

    def freeze(self) -> None:
        """Set the ranges to what was watched, and round from now on."""
        for quantizer in self.placement.activations.values():
            quantizer.calibrate()
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Write into every weight's scale what is read of it: so learning starts there, and files hold nothing else.
        What is stored in 8 bits is rounded to them."""
        for name, quantizer in self.placement.weights.items():
            biases = (attribute(self.module, bias) for bias in self.placement.biases.get(name, ()))
            quantizer.scale.copy_(quantizer.step(self.weight(name), *biases))
        for name, axis in self.placement.stored.items():
            self.weight(name).copy_(rounded(self.weight(name), axis))

    def learn_logarithms(self) -> None:
        """Let all learn but ranges that the graph guarantees; scales as logarithms, so that they stay positive."""
        self.module.requires_grad_(True)
        for quantizer in self.quantizers():
            parametrize.register_parametrization(quantizer, "scale", Exponential())
            quantizer.requires_grad_(not quantizer.guaranteed)

    def settled(self) -> "Student":
        """A copy whose scales are plain parameters, and what is read; whoever trains goes on with those he has."""
        student = copy.deepcopy(self)
        for quantizer in student.quantizers():
            if parametrize.is_parametrized(quantizer):
                # Not by torch's own removal: a copy shares the class that was made for what it is a copy of.
                scale = quantizer.scale.detach()
                del quantizer.parametrizations
                quantizer.__class__ = FakeQuantize
                quantizer.scale = nn.Parameter(scale)
        student.settle()
        return student

    def quantizers(self) -> list[FakeQuantize]:
        """All of them, weights' and activations'."""
        return [m for m in self.module.modules() if isinstance(m, FakeQuantize)]

    def snapshot(self) -> Snapshot:
        """A copy of all that training changes."""
        return copy.deepcopy(self.module.state_dict())

    def restore(self, snapshot: Snapshot) -> None:
        """Put a snapshot back."""
        self.module.load_state_dict(copy.deepcopy(snapshot))

    def save(self) -> dict[str, Any]:
        """All that another student, placed for the same task, needs to go on from here."""
        quantizers = {name: m for name, m in self.module.named_modules() if isinstance(m, FakeQuantize)}
        return {
            "values": self.snapshot(),
            "fixed": [name for name, p in self.module.named_parameters() if not p.requires_grad],
            "quantizers": {name: [q.quant_min, q.quant_max, q.guaranteed] for name, q in quantizers.items()},
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` returned."""
        self.restore(saved["values"])
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name not in saved["fixed"])
        for name, (quant_min, quant_max, guaranteed) in saved["quantizers"].items():
            quantizer = self.module.get_submodule(name)
            assert isinstance(quantizer, FakeQuantize)
            quantizer.quant_min, quantizer.quant_max, quantizer.guaranteed = quant_min, quant_max, guaranteed

    def broken(self) -> str:
        """The first parameter or buffer that is not finite, or a scale that is not positive; "" where all is well."""
        for name, value in self.module.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return name
            if name.endswith(".scale") and bool((value <= 0).any()):
                return name
        return ""
