"""Quantizers put on the edges of a graph that `edges` names: of a teacher's copy it makes the student."""

import copy
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import nn
from torch.fx import GraphModule, Node

from zaq.config.bits import STORED, QConfig
from zaq.config.card import Card
from zaq.ir.move import device_of, onto
from zaq.ir.nodes import activations, attribute, groups_of, input_node, is_depthwise, moves
from zaq.ir.ops import LINEARS, TRANSPOSED
from zaq.quant.asked import all_layers, asked_of, bits_asked
from zaq.quant.edges import HIGH, activation_bits, ends, is_product, joins_a_convolution, left_in_float, weighted_layers
from zaq.quant.fake_quantize import BiasQuantize, FakeQuantize
from zaq.quant.ranges import Bounds, bounds, told_apart

__all__ = ["Placement", "place"]

READ = "_read"  # behind a tensor's name: its rounding for the kernels that read it at fewer bits than others do


@dataclass
class Placement:
    """What was placed: node or parameter name -> its quantizer; and what stays in float, with the reason."""

    activations: dict[str, FakeQuantize] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)  # activation -> the node whose tensor it is
    weights: dict[str, FakeQuantize] = field(default_factory=dict)
    layers: dict[str, tuple[str, str]] = field(default_factory=dict)  # layer -> (input tensor, weight)
    biases: dict[str, list[str]] = field(default_factory=dict)  # weight -> the biases in steps of its grid
    keys: dict[str, str] = field(default_factory=dict)  # weight -> the name of its quantizer's module
    in_float: list[str] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)  # weight of a layer in float -> its channels' axis (STORED)


def place(
    gm: GraphModule, qconfig: QConfig, card: Card, search: bool = True, unlike: Collection[str] = ()
) -> tuple[GraphModule, Placement]:
    """A copy of a folded graph with FakeQuantize modules on its edges: the student, not yet calibrated.

    `search`: see `FakeQuantize.fit_weight`. `unlike`: see `edges.activation_bits`.

    Ranges that the graph guarantees are fixed at 8 bits, and limit the search at fewer (`ranges.bounds`); so do
    the ends beyond which no reader tells values apart (`ranges.told_apart`).
    """
    gm = copy.deepcopy(gm)
    placed = Placement()
    gm.add_module("quant", quantizers := nn.ModuleDict())
    placed.in_float, known = left_in_float(gm, unlike), bounds(gm, card)
    bits, coarser = activation_bits(gm, qconfig, unlike)
    useful = {node: told_apart(node) for node in bits}
    live = {input_node(gm), *activations(gm)}
    kernels = {*weighted_layers(gm), *(n for n in live if is_product(n, live))}
    for node, width in bits.items():
        for name, here in ((node.name, width), (f"{node.name}{READ}", coarser.get(node))):
            if here is not None:
                quantizer = _activation_quantizer(
                    here, known.get(node.name, Bounds()), useful[node], qconfig.activations == "symmetric"
                )
                quantizers[name] = placed.activations[name] = quantizer
                placed.tensors[name] = node.name
        _insert_after(gm, node)
        if node in coarser:
            _insert_before(kernels, gm, node)
    first, last = ends(gm)
    for node in all_layers(gm):
        if asked_of(node) == STORED:
            assert isinstance(node.args[1], Node)
            placed.stored[str(node.args[1].target)] = 1 if node.target in TRANSPOSED else 0
    for node in weighted_layers(gm):
        usual = qconfig.of_layer(node in first, node in last, is_depthwise(node))
        _quantize_layer(gm, node, bits_asked(node, usual)[0], qconfig, placed)
    _leave_room(gm, placed)
    onto(gm, device_of(gm))  # the quantizers, too
    for name, quantizer in placed.weights.items():
        quantizer.fit_weight(attribute(gm, name), search)
    gm.recompile()
    return gm, placed


def _leave_room(gm: GraphModule, placed: Placement) -> None:
    """Let each weight's quantizer read the biases that are added in steps of its grid (`FakeQuantize.step`)."""
    for name, biases in placed.biases.items():
        for node in [n for n in gm.graph.nodes if n.target == f"quant.{placed.keys[name]}"]:
            with gm.graph.inserting_before(node):
                node.args = (node.args[0], *(gm.graph.get_attr(bias) for bias in biases))


def _activation_quantizer(bits: int, known: Bounds, useful: tuple[float, float], signed: bool) -> FakeQuantize:
    limits = max(known.low, useful[0]), min(known.high, useful[1])
    quantizer = FakeQuantize(bits, signed=signed, limits=limits)
    if bits >= HIGH and known.tight:
        quantizer.set_range(known.low, known.high)
        quantizer.guaranteed, quantizer.doubted = True, known.clamped
    return quantizer


def _insert_after(gm: GraphModule, node: Node) -> None:
    """Put a node's quantizer behind it, and again behind what only moves its values, so that a kernel's operands come
    straight from one. The second time changes no value."""
    todo = [node]
    while todo:
        place = todo.pop()
        readers = list(place.users)
        _insert(gm, place, node.name, readers)
        # Runtimes fuse a padding into the convolution behind it, if nothing stands between the two.
        todo += [u for u in readers if moves(u) and not joins_a_convolution(u)]


def _insert_before(kernels: set[Node], gm: GraphModule, node: Node) -> None:
    """Put the coarser quantizer of a node between its own, wherever that stands, and the layers and products behind."""
    for place in [n for n in gm.graph.nodes if n.target == f"quant.{node.name}"]:
        readers = [u for u in place.users if u in kernels or joins_a_convolution(u)]
        if readers:
            _insert(gm, place, f"{node.name}{READ}", readers)


def _insert(gm: GraphModule, place: Node, name: str, readers: list[Node]) -> None:
    with gm.graph.inserting_after(place):
        new = gm.graph.call_module(f"quant.{name}", (place,))
    new.meta["val"] = place.meta.get("val")
    for reader in readers:
        reader.replace_input_with(place, new)


def _quantize_layer(gm: GraphModule, node: Node, bits: int, qconfig: QConfig, placed: Placement) -> None:
    module = gm.get_submodule("quant")
    weight = node.args[1]
    source = node.args[0]
    assert isinstance(module, nn.ModuleDict) and isinstance(weight, Node) and isinstance(source, Node)
    name = str(weight.target)
    reads, value = _source_quantizer(gm, source), attribute(gm, name)
    if name not in placed.weights:
        one_scale = "tensor" in qconfig.weights or ("conv" in qconfig.weights and node.target in LINEARS)
        axis = -1 if one_scale else 1 if node.target in TRANSPOSED else 0
        channels = value.shape[axis] if axis >= 0 else 1
        signed = "affine" not in qconfig.weights
        placed.weights[name] = FakeQuantize(qconfig.layer_bits.get(name, bits), axis, channels, signed)
        placed.keys[name] = _free(module, name.replace(".", "_"))
        module[placed.keys[name]] = placed.weights[name]
    quantizer = placed.weights[name]
    quantizer.pairs |= _adds_pairs(node, len(value), quantizer, placed.activations.get(reads), qconfig)
    with gm.graph.inserting_before(node):
        new = gm.graph.call_module(f"quant.{placed.keys[name]}", (weight,))
    node.args = (source, new, *node.args[2:])
    placed.layers[node.name] = (reads, name)
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, Node) and bias.op == "get_attr" and reads:
        key = _free(module, f"{node.name}_bias")
        module[key] = BiasQuantize(placed.activations[reads], placed.weights[name])
        placed.weights[name].inputs += (placed.activations[reads],)
        placed.biases.setdefault(name, []).append(str(bias.target))
        with gm.graph.inserting_before(node):
            new = gm.graph.call_module(f"quant.{key}", (bias,))
        node.args = (*node.args[:2], new, *node.args[3:])


def _adds_pairs(node: Node, channels: int, weight: FakeQuantize, source: FakeQuantize | None, qconfig: QConfig) -> bool:
    """Whether a kernel adds products of 8 bits in pairs: all but depthwise ones, which widen them first."""
    eight = source is not None and weight.bits == source.bits == HIGH
    in_pairs = node.target not in TRANSPOSED and (groups_of(node) == 1 or groups_of(node) != channels)
    return eight and in_pairs and weight.signed and qconfig.preset.merges


def _source_quantizer(gm: GraphModule, node: Node) -> str:
    """The name of the tensor whose quantizer a layer's input went through; empty where it went through none."""
    while node.op != "call_module":
        if not moves(node) or not isinstance(node.args[0], Node):
            return ""
        node = node.args[0]
    return str(node.target).removeprefix("quant.")


def _free(module: nn.ModuleDict, name: str) -> str:
    """The name, or one like it where another module has it: `stem.conv` and `stem_conv` would meet in one."""
    while name in module:
        name += "_"
    return name
