"""One spelling for what torch.export writes in several, so that every pass knows an operation by one name.

Of the same numbers, to a float's last bits: attention as two matrix products around a softmax, a linear layer over
tokens as one over rows, pieces of a split as slices; constants are computed once, and what does nothing goes.
"""

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, map_arg

from zaq.errors import TraceError
from zaq.ir.pieces import as_one_function, as_one_norm

__all__ = ["DECOMPOSED", "one_spelling"]

aten = torch.ops.aten
DECOMPOSED = (aten.einsum.default,)  # into permutations and a product, by torch itself
NOTHING = {
    aten.clone.default, aten.alias.default, aten.contiguous.default, aten.detach.default, aten.dropout.default,
    aten.lift_fresh_copy.default, aten.reshape.default, aten.expand.default, aten.slice.Tensor, aten.pad.default,
    aten.constant_pad_nd.default, aten._to_copy.default, aten.to.dtype, aten.adaptive_avg_pool2d.default,
}  # fmt: skip
FILLED = {
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}  # read no value of the tensor they are made from
LARGER = 4  # times the elements of what a constant is computed from: larger ones ...
LARGE = 2**18  # ... of more elements than that stay computations, so that the file stays small
Rule = Callable[[Graph, Node], Node | None]


def one_spelling(module: GraphModule) -> None:
    """Rewrite a functional graph, and add the constants it needs to the module (both in place)."""
    graph = module.graph
    _rename(graph)
    before: list[Rule] = [_factors, _renamed, _batch_norm, _piece, _attention, _scaled]
    after: list[Rule] = [_product_with_weight(module), _rows, _nothing, _one_reshape, _nothing]
    after += [whole(partial(_attribute, module)) for whole in (as_one_function, as_one_norm)]
    for rule in before:
        _apply(graph, rule)
    _fold_constants(module)
    for rule in after:
        _apply(graph, rule)
    graph.eliminate_dead_code()


def _rename(graph: Graph) -> None:
    """No node is called as torch's containers call what they are made of (`values`, `type`): its quantizer has its
    name.
    """
    for node in graph.nodes:
        if hasattr(nn.ModuleDict, node.name):
            node.name = f"{node.name}_"


def _apply(graph: Graph, rule: Rule) -> None:
    """Put what a rule returns in the place of a node, and leave the node where it returns None."""
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            new = rule(graph, node) if node.op == "call_function" else None
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _call(graph: Graph, like: Node, target: Any, *args: Any) -> Node:
    """A new node with the value that its operation gives, and the place in the user's code that `like` has."""
    node = graph.call_function(target, args)
    node.meta = {k: v for k, v in like.meta.items() if k in ("stack_trace", "nn_module_stack")}
    node.meta["val"] = target(*map_arg(args, lambda n: n.meta["val"]))
    return node


def _value(node: object) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _sizes(value: Tensor) -> list[str]:
    return [str(d) for d in value.shape]


def _renamed(graph: Graph, node: Node) -> Node | None:
    """Global pooling as a mean that keeps its dimensions (and a flatten where the model kept none), pooling to a
    divisor as plain pooling; view as reshape, which takes any memory format; a clamp as one of `CLAMPS`; a product as a
    matmul; SiLU as x times its sigmoid.
    """
    source = _value(node.args[0]) if node.args else None
    if node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    elif node.target is aten.bmm.default:
        node.target = aten.matmul.default
    elif node.target is aten.relu6.default:  # of F.relu6; nn.ReLU6 is a hardtanh already
        node.target, node.args = aten.hardtanh.default, (node.args[0], 0.0, 6.0)
    elif node.target is aten.clip.default:
        node.target = aten.clamp.default
    elif node.target is aten.clamp_max.default:
        node.target, node.args = aten.clamp.default, (node.args[0], None, node.args[1])
    elif node.target is aten.adaptive_avg_pool2d.default and source is not None:
        size = [int(s) for s in node.args[1]]  # type: ignore[union-attr,arg-type]
        kernel = [n // s for n, s in zip(source.shape[-2:], size, strict=True)]
        if size == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-1, -2], True)
        elif max(kernel) > 1 and [k * s for k, s in zip(kernel, size, strict=True)] == list(source.shape[-2:]):
            node.target, node.args = aten.avg_pool2d.default, (node.args[0], kernel, kernel)
    elif node.target is aten.silu.default:  # integer kernels have a table of the sigmoid, and products
        return _call(graph, node, aten.mul.Tensor, node.args[0], _call(graph, node, aten.sigmoid.default, node.args[0]))
    elif node.target is aten.mean.dim and len(node.args) == 2 and source is not None and source.dim() == 4:
        dims = node.args[1]
        if isinstance(dims, list) and sorted(int(d) % 4 for d in dims) == [2, 3]:
            return _call(
                graph, node, aten.flatten.using_ints, _call(graph, node, aten.mean.dim, node.args[0], dims, True), 1
            )
    return None


def _factors(graph: Graph, node: Node) -> Node | None:
    """What few rules would read, as operations of their own: the factor of a scaled sum or difference, and the divisor
    of a pooling that is not the area of its window.
    """
    signs: dict[Any, Any] = {aten.add.Tensor: aten.sub.Tensor, aten.sub.Tensor: aten.add.Tensor}
    alpha = node.kwargs.get("alpha", 1)
    if node.target in signs and alpha != 1:
        first, other = list[Any](node.args)
        if alpha == -1:
            return _call(graph, node, signs[node.target], first, other)
        scaled = _call(graph, node, aten.mul.Tensor, other, alpha) if isinstance(other, Node) else other * alpha
        return _call(graph, node, node.target, first, scaled)
    if node.target is aten.avg_pool2d.default:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        given: dict[str, Any] = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        divisor, kernel = given.get("divisor_override"), given["kernel_size"]
        if divisor is not None:
            if given.get("ceil_mode"):
                raise TraceError(
                    f"{node.name}: an average pooling of ceil_mode with a divisor of its own is not known."
                )
            sides = [kernel] * 2 if isinstance(kernel, int) else [*kernel] * (2 // len(kernel))
            stride, padding = given.get("stride") or sides, given.get("padding", 0)
            pooled = _call(graph, node, aten.avg_pool2d.default, node.args[0], sides, stride, padding)
            return _call(graph, node, aten.mul.Tensor, pooled, math.prod(sides) / divisor)
    return None


def _batch_norm(graph: Graph, node: Node) -> Node | None:
    """Of statistics that stay, as the one result that anybody reads."""
    source = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    if not isinstance(source, Node) or source.target is not aten._native_batch_norm_legit_no_training.default:
        return None
    *parts, momentum, eps = source.args
    return _call(graph, node, aten.batch_norm.default, *parts, False, momentum, eps, False)


def _piece(graph: Graph, node: Node) -> Node | None:
    """A piece of a split, a chunk or an unbind as a slice or a selection."""
    source, index = node.args[:2] if node.target is operator.getitem else (None, 0)
    if (
        not isinstance(source, Node)
        or not isinstance(index, int)
        or source.target not in SPLITS
        or _value(source.args[0]) is None
    ):
        return None
    pieces = source.meta["val"]
    index %= len(pieces)
    dim = (
        source.args[SPLITS[source.target]] if len(source.args) > SPLITS[source.target] else source.kwargs.get("dim", 0)
    )
    if source.target is aten.unbind.int:
        return _call(graph, node, aten.select.int, source.args[0], dim, index)
    sizes = [p.shape[dim] for p in pieces[: index + 1]]
    if not all(isinstance(s, int) for s in sizes):
        return None
    return _call(graph, node, aten.slice.Tensor, source.args[0], dim, sum(sizes[:-1]), sum(sizes))


SPLITS = {
    aten.unbind.int: 1,
    aten.split.Tensor: 2,
    aten.split_with_sizes.default: 2,
    aten.chunk.default: 2,
}  # and where their dim stands


def _attention(graph: Graph, node: Node) -> Node | None:
    """softmax(q k^T / sqrt(d) + mask) v, as two matrix products that integer kernels can take."""
    if node.target is not aten.scaled_dot_product_attention.default:
        return None
    q, k, v, mask, _, causal = list[Any]([*node.args, *(None, 0.0, False)[len(node.args) - 3 :]])
    mask, scale = node.kwargs.get("attn_mask", mask), node.kwargs.get("scale")
    allowed = _value(mask)
    if (
        causal
        or node.kwargs.get("is_causal")
        or node.kwargs.get("enable_gqa")
        or (allowed is not None and allowed.dtype is torch.bool)
    ):
        return None
    d = q.meta["val"].shape[-1]
    logits = _call(graph, node, aten.matmul.default, q, _call(graph, node, aten.transpose.int, k, -2, -1))
    logits = _call(graph, node, aten.mul.Tensor, logits, scale or 1 / math.sqrt(d))
    if mask is not None:
        logits = _call(graph, node, aten.add.Tensor, logits, mask)
    return _call(graph, node, aten.matmul.default, _call(graph, node, aten.softmax.int, logits, -1), v)


def _scaled(graph: Graph, node: Node) -> Node | None:
    """(c q) k^T as c (q k^T): the product then reads what the layer before it wrote, integers."""
    for index in (0, 1) if node.target is aten.matmul.default else ():
        factor = node.args[index]
        if isinstance(factor, Node) and factor.target is aten.mul.Tensor and isinstance(factor.args[1], int | float):
            operands = [factor.args[0] if i == index else a for i, a in enumerate(node.args)]
            return _call(
                graph, node, aten.mul.Tensor, _call(graph, node, aten.matmul.default, *operands), factor.args[1]
            )
    return None


def _product_with_weight(module: GraphModule) -> Rule:
    def rule(graph: Graph, node: Node) -> Node | None:
        """x @ W of a parameter as a linear layer, which has W^T."""
        weight = node.args[1] if node.target is aten.matmul.default else None
        x = node.args[0] if node.args else None
        if not isinstance(weight, Node) or weight.op != "get_attr" or not isinstance(x, Node) or x.op == "get_attr":
            return None
        value = _attribute(module, str(weight.target))
        if value.dim() != 2 or (_value(x) is None):
            return None
        new = _constant(
            module, graph, f"{node.name}_weight", value.detach().T.contiguous(), isinstance(value, nn.Parameter)
        )
        made = graph.call_function(aten.linear.default, (x, new))
        made.meta = dict(node.meta)
        return made

    return rule


def _rows(graph: Graph, node: Node) -> Node | None:
    """A linear layer over (N, ..., C) as one over (rows, C): what integer kernels take,
    with a bias in the accumulator."""
    x, y = (_value(node.args[0]), _value(node)) if node.target is aten.linear.default else (None, None)
    if x is None or y is None or x.dim() < 3:
        return None
    sizes = [d if isinstance(d, int) else -1 for d in y.shape]
    if sizes.count(-1) != 1:
        return None
    rows = _call(graph, node, aten.reshape.default, node.args[0], [-1, x.shape[-1]])
    layer = graph.call_function(aten.linear.default, (rows, *node.args[1:]))
    layer.meta = dict(node.meta)
    layer.meta["val"] = y.reshape(-1, y.shape[-1])
    return _call(graph, node, aten.reshape.default, layer, sizes)


def _nothing(graph: Graph, node: Node) -> Node | None:
    """What an operation reads, if it leaves it as it is."""
    zero = node.target is aten.add.Tensor and not isinstance(node.args[1], Node) and node.args[1] == 0
    source = node.args[0] if zero or node.target in NOTHING else None
    before, after = _value(source), _value(node)
    if (
        before is None
        or after is None
        or not isinstance(source, Node)
        or _sizes(before) != _sizes(after)
        or before.dtype != after.dtype
    ):
        return None
    moved = node.target in (aten.pad.default, aten.constant_pad_nd.default) and any(node.args[1])  # type: ignore[arg-type]
    return None if moved else source


def _one_reshape(graph: Graph, node: Node) -> Node | None:
    """A reshape of what was reshaped before, as one."""
    before = node.args[0] if node.target is aten.reshape.default else None
    if isinstance(before, Node) and before.target is aten.reshape.default:
        node.args = (before.args[0], *node.args[1:])
    return None


def _fold_constants(module: GraphModule) -> None:
    """Compute what depends on no input but parameters: normalised weights, tables of positions, masks."""
    graph = module.graph
    constant: set[Node] = set()
    for node in graph.nodes:
        value = _value(node)
        if node.op == "get_attr":
            constant.add(node)
        elif node.op == "call_function" and value is not None and all(isinstance(d, int) for d in value.shape):
            ours = getattr(node.target, "namespace", "aten") != "aten"  # a quantizer of a checkpoint
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if (
                not ours
                and not random
                and constant.issuperset(node.all_input_nodes[1:] if node.target in FILLED else node.all_input_nodes)
            ):
                constant.add(node)
    known: dict[Node, Tensor] = {}
    kept: dict[tuple[Any, ...], str] = {}
    for node in list(graph.nodes):
        if node not in constant or node.op == "get_attr" or constant.issuperset(node.users):
            continue
        roots = _roots(node)
        value = _compute(module, node, known)
        size = sum(_attribute(module, r).numel() for r in roots)
        if value.numel() > max(LARGE, LARGER * size):
            continue
        learned = any(isinstance(_attribute(module, r), nn.Parameter) for r in roots)
        key = (
            learned and node.name,
            value.dtype,
            tuple(value.shape),
            value.numpy().tobytes() if value.numel() <= LARGE else node.name,
        )
        with graph.inserting_before(node):
            name = kept.get(key, f"{node.name}_constant")
            new = graph.get_attr(name) if key in kept else _constant(module, graph, name, value, learned)
        kept[key] = name
        new.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _roots(node: Node) -> set[str]:
    """The parameters and buffers that a constant is computed from."""
    seen: set[Node] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node not in seen and node.op != "placeholder":
            seen.add(node)
            todo += node.all_input_nodes[1:] if node.target in FILLED else node.all_input_nodes
    return {str(n.target) for n in seen if n.op == "get_attr"}


@torch.no_grad()
def _compute(module: GraphModule, node: Node, known: dict[Node, Tensor]) -> Tensor:
    if node not in known:
        if node.op == "get_attr":
            known[node] = _attribute(module, str(node.target)).detach()
        elif node.target in FILLED:
            value, fill = node.meta["val"], {aten.new_zeros.default: 0, aten.new_ones.default: 1}
            known[node] = torch.full(value.shape, fill.get(node.target, node.args[-1]), dtype=value.dtype)  # type: ignore[arg-type]
        else:
            read = {n: _compute(module, n, known) for n in node.all_input_nodes}
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: read[n])
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def _constant(module: GraphModule, graph: Graph, name: str, value: Tensor, learned: bool) -> Node:
    value = value.clone().contiguous()
    if learned and value.is_floating_point():
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)
    node = graph.get_attr(name)
    return node


def _attribute(module: nn.Module, target: str) -> Tensor:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]
