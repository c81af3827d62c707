"""The normalisation that a network begins with, (x - a) / b, where it has one of its own.

Keras' Rescaling, a preprocessing that was exported with the model, a batch norm before the first convolution: what the
first convolution reads is then the image, and not what enters the graph; it has the image's 8 bits, and its range
follows from the range of pixels. Where no card says what pixels enter, the normalisation tells whether they go to 1 or
to 255. The second is taken for so, as a guess that is said; the first is said alone.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq.config.card import Card
from zaq.ir.nodes import attribute, input_node
from zaq.ir.ops import BATCH_NORMS

__all__ = ["image_node", "opening", "read_opening"]

aten = torch.ops.aten
ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor, aten.div.Tensor}
SAME = {aten.clone.default, aten.contiguous.default, aten.alias.default}
Affine = tuple[Tensor, Tensor]  # factor and summand, each (C or 1, 1, 1)
NORMALIZED = (0.5, 8.0)  # what a normalised image spans, at least and at most; of 255 levels it spans from 100 on
WHITE = (1, 255)  # what the lightest pixel may be


def opening(gm: GraphModule) -> dict[Node, Affine]:
    """The nodes between the input and whatever else reads it first, in order, each as what it makes of the input:
    factor and summand. Empty where something else comes first."""
    found: dict[Node, Affine] = {}
    node, (scale, shift) = input_node(gm), (torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    if node.meta["val"].dim() != 4:
        return found
    while len(readers := [u for u in node.users if u.target is not aten.sym_size.int]) == 1:
        step = _affine(gm, readers[0], node)
        if step is None:
            break
        scale, shift, node = scale * step[0], shift * step[0] + step[1], readers[0]
        found[node] = scale, shift
    return found if any(n.target not in SAME for n in found) else {}


def image_node(gm: GraphModule) -> Node:
    """The node whose value is the image as the first layer reads it: the input, or the end of the `opening`."""
    return next(reversed(opening(gm)), input_node(gm))


def read_opening(gm: GraphModule, card: Card) -> tuple[Card, list[str]]:
    """The card, its bounds guessed from the `opening` where it knows none; and what a report has to say of it."""
    found = opening(gm)
    if not found:
        return card, []
    scale, shift = list(found.values())[-1]
    begins = f"the network begins with a normalisation of its own, {_shown(scale)} x + {_shown(shift)}"
    if card.knows_pixels:
        low, high = card.bounds()
        ends = torch.stack([low * scale + shift, high * scale + shift])
        span = float((ends.amax(0) - ends.amin(0)).mean())
        said = f"{begins}: its first layer reads {float(ends.min()):.3g} to {float(ends.max()):.3g}"
        if not NORMALIZED[0] <= span <= NORMALIZED[1]:
            said += "; images are seldom normalised so: is the normalisation given, and the network does it once more?"
        return card, [said]
    fitting = [white for white in WHITE if NORMALIZED[0] <= float(scale.abs().mean()) * white <= NORMALIZED[1]]
    if len(fitting) != 1 or not _around_zero(scale, shift, fitting[0]):
        return card, [f"{begins}; which pixels it reads does not follow: say --normalize 0-255, 0-1 or another"]
    (white,) = fitting
    if white == 1:  # numbers around 0 reach all of these, too, and may be what it is given: not assumed
        return card, [f"{begins}, as for pixels from 0 to 1; if it reads such, say --normalize 0-1"]
    return replace(card, mean=(0.0,), std=(1 / white,)), [
        f"{begins}: its input is taken for pixels from 0 to {white}, a guess; if it is another, say --normalize"
    ]


def _around_zero(scale: Tensor, shift: Tensor, white: float) -> bool:
    """Whether normalised pixels from 0 to `white` lie where such do, on both sides of 0 or from it on."""
    ends = torch.stack([shift.expand_as(scale + shift), scale * white + shift])
    return bool((ends.amin(0) <= NORMALIZED[0]).all() and (ends.amax(0) >= -NORMALIZED[0]).all())


def _affine(gm: GraphModule, node: Node, source: Node) -> Affine | None:
    """What a node makes of its source, if that is a factor and a summand for each channel."""
    one = torch.ones(1, 1, 1)
    if node.target in SAME:
        return one, 0 * one
    if node.target in BATCH_NORMS and node.args[0] is source:
        weight, bias, mean, var = (_constant(gm, a) for a in node.args[1:5])
        eps = node.args[7]
        if mean is None or var is None or not isinstance(eps, float):
            return None
        mean, var = (v.reshape(-1, 1, 1) for v in (mean, var))
        gain = (one if weight is None else weight.reshape(-1, 1, 1)) / (var + eps).sqrt()
        return gain, (0 * one if bias is None else bias.reshape(-1, 1, 1)) - mean * gain
    if node.target not in ARITHMETIC or len(node.args) != 2 or node.kwargs:
        return None
    first = node.args[0] is source
    value = _constant(gm, node.args[1] if first else node.args[0])
    channels = source.meta["val"].shape[1]
    if value is None or (value.dim() == 4 and len(value) > 1) or value.dim() > 4:
        return None
    value = value[0] if value.dim() == 4 else value
    if tuple(value.shape) not in ((), (1,), (1, 1), (1, 1, 1), (channels, 1, 1)):
        return None
    value = value.reshape(-1, 1, 1)
    if node.target is aten.mul.Tensor:
        return value, 0 * one
    if node.target is aten.div.Tensor:
        return (1 / value, 0 * one) if first else None
    if node.target is aten.add.Tensor:
        return one, value
    return (one, -value) if first and node.target is aten.sub.Tensor else (-one, value)


def _constant(gm: GraphModule, argument: object) -> Tensor | None:
    if isinstance(argument, int | float):
        return torch.tensor(float(argument))
    if isinstance(argument, Node) and argument.op == "get_attr":
        value = attribute(gm, str(argument.target)).detach()
        return value.float() if value.is_floating_point() else None
    return None


def _shown(values: Tensor) -> str:
    distinct = list(dict.fromkeys(f"{v:.4g}" for v in values.flatten().tolist()))
    return distinct[0] if len(distinct) == 1 else f"({', '.join(distinct)})"
