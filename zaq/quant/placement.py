"""Where quantization goes: the presets of `config.PLACEMENTS`, worked out on a graph.

`integer`, every edge that an integer kernel reads or writes:

| edge                                                   | bits                         |
|--------------------------------------------------------|------------------------------|
| the image                                              | 8 (it is 8 bits anyway)      |
| input of a convolution or linear layer                 | activation bits              |
| operands of a matrix product of two activations        | activation bits              |
| input of the last layer                                | `first_last`                 |
| operand of add, mul, cat, an average pooling           | 8                            |
| its result, if an integer kernel reads it or it leaves | 8, where nothing above reads it |
| the graph                                              |                              |
| output of a convolution that no clamp follows          | 8, where nothing above reads it |
| weight, one scale per output channel                   | weight bits; first and last layer: `first_last` |
| bias                                                   | int32, in steps of s_x s_w   |

A tensor has one quantizer, shared by all its readers, at the bits of the most demanding one; but what a merge reads at 8
bits and a layer at fewer, as the residual stream of a network, has two: the layer reads its own, coarser rounding of the
8 bits. Networks of 2 to 4 bits lose most of what they lose where the stream itself is that coarse, and no integer kernel
adds numbers of fewer than 8 bits. `shared` has one for all, at the fewest bits.

`gdfq`: what a ReLU writes, and the weights of all layers; `brecq`: the inputs of all layers but the first. Both leave
the rest in float: they are here to compare with what was published, not to be deployed. (Biases are float there. Here
they are int32 where the layer's input is quantized, which costs nothing, and which onnxruntime would do unasked.)

A clamp behind a kernel is part of it: the quantizer stands behind the clamp. A linear layer or a product whose result no
integer kernel reads (GELU, softmax, the graph's output) writes floats, as those kernels can. An addition between layer
norms, the residual stream of a transformer, stays in float with them: it would be rounded for no other kernel's sake.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.fx import GraphModule, Node

from zaq.config import Card, QConfig
from zaq.graph import (
    CLAMPS,
    CONVS,
    LINEARS,
    MATMULS,
    MERGES,
    PADS,
    POOLS,
    TRANSPOSED,
    WEIGHTED,
    activations,
    input_node,
    output_nodes,
)  # fmt: skip
from zaq.nodes import attribute, groups_of, moves, pad_value
from zaq.quant.fake_quantize import BiasQuantize, FakeQuantize
from zaq.quant.ranges import Bounds, bounds

__all__ = ["Placement", "make_room", "place", "weighted_layers"]

HIGH = 8  # bits of what is not read by a convolution or linear layer
READ = "_read"  # behind a tensor's name: its rounding for the kernels that read it at fewer bits than others do


@dataclass
class Placement:
    """What was placed: node or parameter name -> its quantizer; and what stays in float, with the reason."""

    activations: dict[str, FakeQuantize] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)  # activation -> the node whose tensor it is
    weights: dict[str, FakeQuantize] = field(default_factory=dict)
    layers: dict[str, tuple[str, str]] = field(default_factory=dict)  # layer -> (input tensor, weight)
    in_float: list[str] = field(default_factory=list)


def place(gm: GraphModule, qconfig: QConfig, card: Card, search: bool = True) -> tuple[GraphModule, Placement]:
    """A copy of a folded graph with FakeQuantize modules on its edges: the student, not yet calibrated.

    `search`: see `FakeQuantize.fit_weight`.

    Ranges that the graph guarantees are fixed at 8 bits, and limit the search at fewer (see `ranges.bounds`).
    """
    gm = copy.deepcopy(gm)
    placed = Placement()
    gm.add_module("quant", quantizers := nn.ModuleDict())
    placed.in_float, known = _left_in_float(gm), bounds(gm, card)
    bits, coarser = _activation_bits(gm, qconfig)
    for node, width in bits.items():
        for name, here in ((node.name, width), (f"{node.name}{READ}", coarser.get(node))):
            if here is not None:
                quantizer = _activation_quantizer(here, known.get(node.name, Bounds()), qconfig.activations == "symmetric")
                quantizers[name] = placed.activations[name] = quantizer
                placed.tensors[name] = node.name
        _insert_after(gm, node)
        if node in coarser:
            _insert_before_kernels(gm, node)
    first, last = _ends(gm)
    for node in weighted_layers(gm):
        width = qconfig.first_last if qconfig.first_last and (node in first or node in last) else qconfig.weight_bits
        _quantize_layer(gm, node, width, qconfig, placed)
    for name, quantizer in placed.weights.items():
        quantizer.fit_weight(attribute(gm, name), search)
    gm.recompile()
    return gm, placed


def make_room(gm: GraphModule) -> None:
    """Let no accumulator overflow, once ranges are known and whenever weights have changed: see both `make_room`."""
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, BiasQuantize) or (isinstance(module, FakeQuantize) and module.pairs):
            module.make_room(attribute(gm, str(node.args[0].target)))


def weighted_layers(gm: GraphModule) -> list[Node]:
    """The convolutions and linear layers on the input's way whose weight is a parameter."""
    return [n for n in activations(gm) if n.target in WEIGHTED and isinstance(n.args[1], Node) and n.args[1].op == "get_attr"]


def _activation_bits(gm: GraphModule, qconfig: QConfig) -> tuple[dict[Node, int], dict[Node, int]]:
    """The tensors to quantize, by the node that makes them, and their bits; and those of a second, coarser quantizer
    for the kernels that read them."""
    preset = qconfig.preset
    live = {input_node(gm), *activations(gm)}
    layers, read = set(weighted_layers(gm)), _read_by_kernels(gm, live)
    first, last = _ends(gm)
    products = {n for n in live if _is_product(n, live)}
    reads, merges, writes = dict[Node, int](), dict[Node, int](), dict[Node, int]()

    def ask(who: dict[Node, int], node: Node, width: int) -> None:
        maker = _maker(node)
        if maker in live and maker is not input_node(gm):
            who[maker] = min(width, who.get(maker, width))

    for node in live:
        if node in layers:
            assert isinstance(node.args[0], Node)
            if preset.reads:
                ask(reads, node.args[0], qconfig.first_last if qconfig.first_last and node in last else qconfig.act_bits)
            if preset.merges and node.target not in LINEARS:
                ask(writes, _behind_clamp(node), HIGH)
        elif node in products:
            for operand in node.all_input_nodes if preset.reads else ():
                ask(reads, operand, qconfig.act_bits)
        elif preset.merges and node in read and _is_merge_or_pool(node, live):
            for operand in node.all_input_nodes:
                if operand in live:
                    ask(merges, operand, HIGH)
            ask(writes, _behind_clamp(node), HIGH)
        elif preset.clamps and node.target in CLAMPS:
            ask(reads, node, qconfig.act_bits)
    if preset.second:
        reads |= {n: preset.second for n in map(_behind_clamp, first) if n in reads}
    bits = writes | reads | merges if preset.twice else writes | merges | reads
    if preset.image:
        bits[input_node(gm)] = preset.image
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    return dict(sorted(bits.items(), key=lambda item: order[item[0]])), {n: w for n, w in reads.items() if w < bits[n]}


def _read_by_kernels(gm: GraphModule, live: set[Node]) -> set[Node]:
    """The nodes whose result an integer kernel reads, behind clamps, moves, merges and poolings; and those that leave the graph."""
    layers, outputs, found = set(weighted_layers(gm)), set(output_nodes(gm)), set[Node]()
    for node in reversed(gm.graph.nodes):
        passes = {u for u in node.users if u in found and (moves(u) or u.target in CLAMPS or _is_merge_or_pool(u, live))}
        if node in outputs or passes or any(u in layers or _is_product(u, live) for u in node.users):
            found.add(node)
    return found


def _is_product(node: Node, live: set[Node]) -> bool:
    """Whether a node multiplies two matrices of activations."""
    return node.target in MATMULS and live.issuperset(node.all_input_nodes)


def _is_merge_or_pool(node: Node, live: set[Node]) -> bool:
    """Adding or multiplying a constant is no integer kernel; averaging over channels is none either."""
    if node.target is torch.ops.aten.mean.dim:
        dims = node.args[1]
        return isinstance(dims, list) and node.meta["val"].dim() == 4 and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
    both = sum(n in live for n in node.all_input_nodes) > 1
    return node.target in POOLS or node.target is torch.ops.aten.cat.default or (node.target in MERGES and both)


def _maker(node: Node) -> Node:
    """The node that made a tensor's values: back through operations that only move them."""
    while moves(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _behind_clamp(node: Node) -> Node:
    """The clamp that reads a kernel's result and is its only reader, else the kernel itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in CLAMPS else node


def _ends(gm: GraphModule) -> tuple[set[Node], set[Node]]:
    """The layers that no other layer stands before, and those that none stands behind."""
    layers = set(weighted_layers(gm))
    reached: set[Node] = set()
    first: set[Node] = set()
    for node in activations(gm):
        behind = any(n in reached or n in layers for n in node.all_input_nodes)
        if behind:
            reached.add(node)
        elif node in layers:
            first.add(node)
    leads: set[Node] = set()
    last: set[Node] = set()
    for node in reversed(gm.graph.nodes):
        before = any(n in leads or n in layers for n in node.users)
        if before:
            leads.add(node)
        elif node in layers:
            last.add(node)
    return first, last


def _activation_quantizer(bits: int, known: Bounds, signed: bool) -> FakeQuantize:
    quantizer = FakeQuantize(bits, signed=signed, limits=(known.low, known.high))
    if bits >= HIGH and known.tight:
        quantizer.set_range(known.low, known.high)
        quantizer.guaranteed = True
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
        todo += [u for u in readers if moves(u) and not _joins_a_convolution(u)]


def _insert_before_kernels(gm: GraphModule, node: Node) -> None:
    """Put the coarser quantizer of a node between its own, wherever that stands, and the layers and products behind."""
    live, layers = {input_node(gm), *activations(gm)}, weighted_layers(gm)
    for place in [n for n in gm.graph.nodes if n.target == f"quant.{node.name}"]:
        readers = [u for u in place.users if u in layers or _is_product(u, live) or _joins_a_convolution(u)]
        if readers:
            _insert(gm, place, f"{node.name}{READ}", readers)


def _insert(gm: GraphModule, place: Node, name: str, readers: list[Node]) -> None:
    with gm.graph.inserting_after(place):
        new = gm.graph.call_module(f"quant.{name}", (place,))
    new.meta["val"] = place.meta.get("val")
    for reader in readers:
        reader.replace_input_with(place, new)


def _joins_a_convolution(node: Node) -> bool:
    return node.target in PADS and pad_value(node) == 0 and any(r.target in CONVS for r in node.users)


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
        module[_key(name)] = placed.weights[name]
    quantizer = placed.weights[name]
    quantizer.pairs |= _adds_pairs(node, len(value), quantizer, placed.activations.get(reads), qconfig)
    with gm.graph.inserting_before(node):
        new = gm.graph.call_module(f"quant.{_key(name)}", (weight,))
    node.args = (source, new, *node.args[2:])
    placed.layers[node.name] = (reads, name)
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, Node) and bias.op == "get_attr" and reads:
        module[f"{node.name}_bias"] = BiasQuantize(placed.activations[reads], placed.weights[name])
        with gm.graph.inserting_before(node):
            new = gm.graph.call_module(f"quant.{node.name}_bias", (bias,))
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


def _key(name: str) -> str:
    return name.replace(".", "_")


def _left_in_float(gm: GraphModule) -> list[str]:
    """The operations of a graph without quantizers that will compute in float between quantized tensors."""
    live = {input_node(gm), *activations(gm)}
    layers, read = set(weighted_layers(gm)), _read_by_kernels(gm, live)

    def stays(node: Node) -> bool:
        if node in layers or moves(node) or node.target in CLAMPS or _is_product(node, live):
            return False
        return not (node in read and _is_merge_or_pool(node, live))

    operations = [n for n in gm.graph.nodes if n in live and "aten" in str(n.target) and "sym_" not in str(n.target)]
    return [f"{n.name} ({n.target})" for n in operations if stays(n)]
