"""Which layers have bits of their own, or stay in float, by the names that a user gave (`QConfig.layers`).

A layer is called as its module in the user's model: `layer1.0.conv1`, whose weight is `layer1.0.conv1.weight`. What was
asked of it is written on its node, once, where every copy of the graph has it.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from torch.fx import GraphModule, Node

from zaq.config.bits import QConfig, bits_of
from zaq.errors import BitsError
from zaq.ir.nodes import activations
from zaq.ir.ops import WEIGHTED

__all__ = ["all_layers", "ask", "asked_of", "bits_asked", "layer_name", "require_one_width"]

KEY = "asked"  # of a node's meta


def all_layers(gm: GraphModule) -> list[Node]:
    """The convolutions and linear layers on the input's way whose weight is a parameter."""
    return [
        n
        for n in activations(gm)
        if n.target in WEIGHTED and isinstance(n.args[1], Node) and n.args[1].op == "get_attr"
    ]


def layer_name(node: Node) -> str:
    """What a layer is called: its module in the user's model."""
    return _weight(node).rpartition(".")[0] or _weight(node)


def ask(gm: GraphModule, qconfig: QConfig) -> None:
    """Write what the QConfig asks of single layers on their nodes, in place.

    Raises BitsError for a name, in `layers` or in `layer_bits`, that no layer has; it names the nearest.
    """
    layers = all_layers(gm)
    for pattern, text in qconfig.layers.items():
        fitting = [n for n in layers if any(re.fullmatch(pattern, name) for name in _names(n))]
        if not fitting:
            raise BitsError(_unknown("layer", pattern, [name for n in layers for name in _names(n)], len(layers)))
        for node in fitting:
            node.meta[KEY] = str(text)
    for name in qconfig.layer_bits:
        weights = [_weight(n) for n in layers]
        if name not in weights:
            raise BitsError(_unknown("weight", name, weights, len(layers)))


def asked_of(node: Node) -> str:
    """What was asked of a layer: as `8`, `w8a4`, FLOAT or STORED; empty for nothing."""
    return str(node.meta.get(KEY, ""))


def bits_asked(node: Node, usual: tuple[int, int]) -> tuple[int, int]:
    """Bits of a layer's weight and of what it reads; `usual`: those it has where nothing was asked of it."""
    return bits_of(asked_of(node)) or usual


def require_one_width(readers: Mapping[Node, Sequence[Node]], found: Mapping[Node, int]) -> None:
    """Raise BitsError where a layer was asked to read a tensor at other bits than another layer reads it.

    readers: the layers that read a tensor, by the node that makes it; found: the fewest bits any reads it at.
    """
    for tensor, layers in readers.items():
        for layer in layers:
            asked = bits_of(asked_of(layer))
            if asked and tensor in found and found[tensor] != asked[1]:
                others = ", ".join(layer_name(n) for n in layers if n is not layer)
                raise BitsError(
                    f"layer {layer_name(layer)}: is to read {asked[1]} bits of a tensor that {others or 'a product'} "
                    f"reads at {found[tensor]}; ask the same of all of them."
                )


def _weight(node: Node) -> str:
    weight = node.args[1]
    assert isinstance(weight, Node)
    return str(weight.target)


def _names(node: Node) -> Iterator[str]:
    """What a layer answers to: its module, and each module around it."""
    parts = layer_name(node).split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def _unknown(what: str, name: str, known: Sequence[str], count: int) -> str:
    """The sentence for a name that none has; there are too many for `errors.unknown` to list."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {what} is called {name!r}.{hint} zaq inspect lists the {count} layers; a name is a regular expression."
