"""Which edges of a graph are quantized, at how many bits: the presets of `config.PLACEMENTS`.

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
| what leaves the graph and no integer kernel reads:     |                              |
| a concatenation                                        | float                        |
| the rest, where its channels are unlike                | float                        |
| weight, one scale per output channel                   | weight bits; first and last layer: `first_last` |
| weight and input of a depthwise convolution            | `depthwise`, where that is said |
| bias                                                   | int32, in steps of s_x s_w   |

A tensor has one quantizer, shared by all its readers, at the bits of the most demanding one; but what a merge reads at
8 bits and a layer at fewer, as the residual stream of a network, has two: the layer reads its own, coarser rounding of
the 8 bits. Networks of 2 to 4 bits lose most of what they lose where the stream itself is that coarse, and no integer
kernel adds numbers of fewer than 8 bits. `shared` has one for all, at the fewest bits.

`gdfq`: what a ReLU writes, and the weights of all layers; `brecq`: the inputs of all layers but the first. Both leave
the rest in float: they are here to compare with what was published, not to be deployed. (Biases are float there. Here
they are int32 where the layer's input is quantized, which costs nothing, and which onnxruntime would do unasked.)

A clamp behind a kernel is part of it: the quantizer stands behind the clamp. A linear layer or a product whose result
no integer kernel reads (GELU, softmax, the graph's output) writes floats, as those kernels can. An addition between
layer norms, the residual stream of a transformer, stays in float with them: it would be rounded for no other kernel's
sake.

What leaves the graph is rounded for no kernel's sake either, and one scale for boxes of 0 to 320 and scores of 0 to 1
leaves nothing of the scores. So a concatenation that only outputs read joins floats; and what the last convolution
writes, a sum, a product or a pooling there has a scale only if its channels are alike (`quant.alike`).
"""

from collections.abc import Collection

import torch
from torch.fx import GraphModule, Node

from zaq.config.bits import FLOAT, STORED, QConfig
from zaq.ir.nodes import activations, infinite, input_node, is_depthwise, is_float, moves, output_nodes, pad_value
from zaq.ir.opening import image_node
from zaq.ir.ops import CLAMPS, CONVS, LINEARS, MATMULS, MERGES, PADS, POOLS
from zaq.quant.asked import all_layers, asked_of, bits_asked, require_one_width

__all__ = [
    "HIGH", "activation_bits", "ends", "is_product", "joins_a_convolution", "leaving", "left_in_float",
    "weighted_layers",
]  # fmt: skip

HIGH = 8  # bits of what is not read by a convolution or linear layer


def weighted_layers(gm: GraphModule) -> list[Node]:
    """The convolutions and linear layers on the input's way whose weight is a parameter, but for those that are to stay
    in float (`quant.asked`).
    """
    return [n for n in all_layers(gm) if asked_of(n) not in (FLOAT, STORED)]


def activation_bits(
    gm: GraphModule, qconfig: QConfig, unlike: Collection[str] = ()
) -> tuple[dict[Node, int], dict[Node, int]]:
    """The tensors to quantize, by the node that makes them, and their bits; and those of a second, coarser quantizer
    for the kernels that read them. `unlike`: the names of those of `leaving` whose channels no common scale fits."""
    preset = qconfig.preset
    live, masked = {input_node(gm), *activations(gm)}, infinite(gm)
    layers, read = set(weighted_layers(gm)), _worth_rounding(gm, live, unlike)
    floats = _writes_floats(gm, live, unlike)
    first, last = ends(gm)
    of_layers: dict[Node, list[Node]] = {}  # a tensor, and the layers that read it
    products = {n for n in live if is_product(n, live)}
    image = image_node(gm)
    reads, merges, writes = dict[Node, int](), dict[Node, int](), dict[Node, int]()

    def ask(who: dict[Node, int], node: Node, width: int) -> None:
        maker = _maker(node)
        if maker in live and maker is not image and is_float(maker) and maker not in masked:
            who[maker] = min(width, who.get(maker, width))

    for node in live:
        if node in layers:
            assert isinstance(node.args[0], Node)
            if preset.reads:
                usual = qconfig.of_layer(node in first, node in last, is_depthwise(node))
                ask(reads, node.args[0], bits_asked(node, usual)[1])
                of_layers.setdefault(_maker(node.args[0]), []).append(node)
            if preset.merges and node.target not in LINEARS and node not in floats:
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
    require_one_width(of_layers, reads)
    if preset.second:
        reads |= {n: preset.second for n in map(_behind_clamp, first) if n in reads}
    bits = writes | reads | merges if preset.twice else writes | merges | reads
    if preset.image:
        bits[image] = preset.image
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    return dict(sorted(bits.items(), key=lambda item: order[item[0]])), {n: w for n, w in reads.items() if w < bits[n]}


def _read_by_kernels(gm: GraphModule, live: set[Node]) -> set[Node]:
    """The nodes whose result an integer kernel reads, behind clamps, moves, merges and poolings."""
    layers = set(weighted_layers(gm))
    readers = {n for n in live if any(u in layers or is_product(u, live) for u in n.users)}
    return _passed_to(gm, live, readers)


def _leaves(gm: GraphModule, live: set[Node]) -> set[Node]:
    """The nodes whose result leaves the graph, behind clamps, moves, merges and poolings, and no kernel reads."""
    return _passed_to(gm, live, set(output_nodes(gm))) - _read_by_kernels(gm, live)


def _passed_to(gm: GraphModule, live: set[Node], found: set[Node]) -> set[Node]:
    """`found`, and what is passed on to it."""
    found = set(found)
    for node in reversed(gm.graph.nodes):
        if any(u in found and (moves(u) or u.target in CLAMPS or _is_merge_or_pool(u, live)) for u in node.users):
            found.add(node)
    return found


def leaving(gm: GraphModule) -> list[Node]:
    """What decides whether a result that leaves the graph, and that no integer kernel reads, is rounded: outputs of the
    last convolutions, before their clamp; sums, products and poolings, and what these read."""
    live = {input_node(gm), *activations(gm)}
    read, leave = _read_by_kernels(gm, live), _leaves(gm, live)
    convolutions = {n for n in ends(gm)[1] if n.target not in LINEARS and n not in read}
    merges = {n for n in leave if _is_merge_or_pool(n, live) and n.target is not torch.ops.aten.cat.default}
    asked = convolutions | merges | {n for m in merges for n in m.all_input_nodes if n in live}
    return [n for n in gm.graph.nodes if n in asked]


def _worth_rounding(gm: GraphModule, live: set[Node], unlike: Collection[str]) -> set[Node]:
    """The nodes whose result integer kernels read; and those that leave the graph and can be rounded to one scale."""

    def alike(node: Node) -> bool:
        parts = [node, *node.all_input_nodes] if _is_merge_or_pool(node, live) else [node]
        return node.target is not torch.ops.aten.cat.default and not any(n.name in unlike for n in parts)

    return _read_by_kernels(gm, live) | {n for n in _leaves(gm, live) if alike(n)}


def _writes_floats(gm: GraphModule, live: set[Node], unlike: Collection[str]) -> set[Node]:
    """The convolutions whose result leaves the graph as floats."""
    read = _read_by_kernels(gm, live)
    return {n for n in weighted_layers(gm) if n.name in unlike and n not in read and n.target not in LINEARS}


def is_product(node: Node, live: set[Node]) -> bool:
    """Whether a node multiplies two matrices of activations."""
    return node.target in MATMULS and live.issuperset(node.all_input_nodes)


def _is_merge_or_pool(node: Node, live: set[Node]) -> bool:
    """Adding or multiplying a constant is no integer kernel; averaging over channels is none either."""
    if node.target is torch.ops.aten.mean.dim:
        dims = node.args[1]
        return (
            isinstance(dims, list)
            and node.meta["val"].dim() == 4
            and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
        )
    both = sum(n in live and is_float(n) for n in node.all_input_nodes) > 1
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


def ends(gm: GraphModule) -> tuple[set[Node], set[Node]]:
    """The layers that no other layer stands before, and those that none stands behind."""
    layers = set(all_layers(gm))
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


def joins_a_convolution(node: Node) -> bool:
    """Whether a node pads with zeros what a convolution reads."""
    return node.target in PADS and pad_value(node) == 0 and any(r.target in CONVS for r in node.users)


def left_in_float(gm: GraphModule, unlike: Collection[str] = ()) -> list[str]:
    """The operations of a graph without quantizers that will compute in float between quantized tensors. `unlike`: see
    `activation_bits`."""
    live = {input_node(gm), *activations(gm)}
    layers, read = set(weighted_layers(gm)), _worth_rounding(gm, live, unlike)
    floats = _writes_floats(gm, live, unlike)

    def stays(node: Node) -> bool:
        if node in floats:
            return True
        if node in layers or moves(node) or node.target in CLAMPS or is_product(node, live):
            return False
        return not (node in read and _is_merge_or_pool(node, live))

    operations = [n for n in gm.graph.nodes if n in live and "aten" in str(n.target) and "sym_" not in str(n.target)]
    return [f"{n.name} ({n.target})" for n in operations if stays(n)]
