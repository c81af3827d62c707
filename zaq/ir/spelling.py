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
from zaq.ir.nodes import moves
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


def one_spelling(module: GraphModule) -> list[str]:
    """Rewrite a functional graph, and add the constants it needs to the module (both in place).

    Returns what a report has to say of what could not be said in any other way.
    """
    graph = module.graph
    _rename(graph)
    notes: list[str] = []
    before: list[Rule] = [
        _recomposed, _first_result, _padding, _of_the_batch(notes), _factors, _renamed, _limits, _piece, _attention,
        _scaled,
    ]  # fmt: skip
    after: list[Rule] = [_product_with_weight(module), _rows, _nothing, _one_reshape, _nothing]
    after += [whole(partial(_attribute, module)) for whole in (as_one_function, as_one_norm)]
    for rule in before:
        _apply(graph, rule)
    _fold_constants(module)
    for rule in after:
        _apply(graph, rule)
    _fill_infinite(module)
    graph.eliminate_dead_code()
    return notes


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


def _call(graph: Graph, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new node with the value that its operation gives, and the place in the user's code that `like` has."""
    node = graph.call_function(target, args, kwargs)
    node.meta = {k: v for k, v in like.meta.items() if k in ("stack_trace", "nn_module_stack")}
    node.meta["val"] = target(*map_arg(args, lambda n: n.meta["val"]), **map_arg(kwargs, lambda n: n.meta["val"]))
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
    elif node.target in SCALARS and len(node.args) == 2:
        node.target = SCALARS[node.target]
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


def _limits(graph: Graph, node: Node) -> Node | None:
    """Whole numbers among the limits of a clamp of floats as floats: of a clamp between 0 and 0.5 torch's ONNX exporter
    makes one between a tensor and a number, which there is none of."""
    source = _value(node.args[0]) if node.args else None
    if node.target in LIMITED and source is not None and source.is_floating_point():
        as_floats = (float(a) if isinstance(a, int) else a for a in node.args[1:])
        node.args = (node.args[0], *as_floats)
        node.kwargs = {k: float(v) if isinstance(v, int) else v for k, v in node.kwargs.items()}
    return None


LIMITED = {aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default}
SCALARS = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
}


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


def _recomposed(graph: Graph, node: Node) -> Node | None:
    """What `run_decompositions` writes for convolutions, linear layers, softmax and the like, as models say it."""
    arguments = list[Any](node.args)
    if node.target is aten.convolution.default:
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = arguments
        dims = len(stride)
        if transposed:
            behind = (stride, padding, output_padding, groups, dilation)
            return _call(graph, node, TRANSPOSED_BY_DIMS[dims], x, weight, bias, *behind)
        return _call(graph, node, CONV_BY_DIMS[dims], x, weight, bias, stride, padding, dilation, groups)
    if node.target in (aten.addmm.default, aten.mm.default):
        *bias, x, right = arguments
        if any(factor != 1 for factor in node.kwargs.values()):
            return None
        weight = _turned(graph, node, right)
        if weight is not None and (not bias or _is_row(bias[0])):
            return _call(graph, node, aten.linear.default, x, weight, *bias)
        product = _call(graph, node, aten.matmul.default, x, right)
        return _call(graph, node, aten.add.Tensor, product, *bias) if bias else product
    if node.target is aten.t.default:
        return _call(graph, node, aten.transpose.int, arguments[0], 0, 1)
    if node.target in SOFTMAXES:
        return _call(graph, node, SOFTMAXES[node.target], *arguments[:2])
    if node.target is aten._adaptive_avg_pool2d.default:
        return _call(graph, node, aten.adaptive_avg_pool2d.default, *arguments)
    return None


CONV_BY_DIMS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED_BY_DIMS = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
SOFTMAXES = {aten._softmax.default: aten.softmax.int, aten._log_softmax.default: aten.log_softmax.int}


def _turned(graph: Graph, like: Node, right: Node) -> Node | None:
    """The weight of a linear layer, for the matrix that a product has on its right; None for one that is computed."""
    if right.op == "get_attr":
        return _call(graph, like, aten.transpose.int, right, 0, 1)
    source = right.args[0] if right.args else None
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    swaps = {aten.t.default: (), aten.transpose.int: (0, 1), aten.permute.default: ([1, 0],)}
    return source if right.target in swaps and tuple(right.args[1:]) == swaps[right.target] else None


def _is_row(bias: Node) -> bool:
    return bias.op == "get_attr" and bias.meta["val"].dim() == 1


def _first_result(graph: Graph, node: Node) -> Node | None:
    """The first result of an operation of several, as the operation that has it alone, where nobody reads the others:
    norms, a max pooling with its indices, attention.
    """
    source = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    if not isinstance(source, Node) or any(u.args[1] != 0 for u in source.users if u.users):
        return None
    arguments = list[Any](source.args)
    if source.target is aten._native_batch_norm_legit_no_training.default:
        *parts, momentum, eps = arguments
        return _call(graph, node, aten.batch_norm.default, *parts, False, momentum, eps, False)
    if source.target is aten._native_batch_norm_legit.no_stats:
        x, weight, bias, _, momentum, eps = arguments
        return _call(graph, node, aten.batch_norm.default, x, weight, bias, None, None, True, momentum, eps, False)
    if source.target in BATCH_NORMS:
        return _call(graph, node, aten.batch_norm.default, *arguments, False)
    if source.target is aten.native_layer_norm.default:
        return _call(graph, node, aten.layer_norm.default, *arguments)
    if source.target is aten.native_group_norm.default:
        x, weight, bias, *_, groups, eps = arguments
        return _call(graph, node, aten.group_norm.default, x, groups, weight, bias, eps)
    if source.target in MAX_POOLS:
        return _call(graph, node, MAX_POOLS[source.target], *arguments)
    if source.target is aten._scaled_dot_product_flash_attention_for_cpu.default:
        q, k, v, *rest = arguments
        asked = {name: source.kwargs[name] for name in ("attn_mask", "scale") if name in source.kwargs}
        causal = rest[1] if len(rest) > 1 else False
        given = (q, k, v, asked.pop("attn_mask", None), 0.0, causal)
        return _call(graph, node, aten.scaled_dot_product_attention.default, *given, **asked)
    return None


BATCH_NORMS = {  # (input, weight, bias, mean, variance, training, momentum, eps)
    aten.native_batch_norm.default, aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit_functional.default,
}  # fmt: skip
MAX_POOLS = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
}


def _padding(graph: Graph, node: Node) -> Node | None:
    """Padding in numbers: a convolution's `same` and `valid` as pixels, what lies on one side alone as an operation of
    its own; and a padding that no maximum can be, before a max pooling, as that pooling's own.
    """
    arguments = list[Any](node.args)
    if node.target in PADDED:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given: dict[str, Any] = dict(zip(names, arguments, strict=False)) | node.kwargs
        x, weight, ones = given["input"], given["weight"], [1] * (len(given["weight"].meta["val"].shape) - 2)
        dilation = _each(given.get("dilation", 1), len(ones))
        reach = [d * (int(k) - 1) for d, k in zip(dilation, weight.meta["val"].shape[2:], strict=True)]
        padding = [r // 2 for r in reach] if given.get("padding", "valid") == "same" else [0] * len(ones)
        if given.get("padding") == "same" and any(r % 2 for r in reach):
            sides = [side for r in reversed(reach) for side in (r // 2, r - r // 2)]
            x, padding = _call(graph, node, aten.constant_pad_nd.default, x, sides, 0.0), [0] * len(ones)
        stride = _each(given.get("stride", 1), len(ones))
        behind = (stride, padding, dilation, given.get("groups", 1))
        return _call(graph, node, PADDED[node.target], x, weight, given.get("bias"), *behind)
    if node.target is aten.max_pool2d.default:
        return _padded_pool(graph, node, arguments)
    return None


PADDED = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
NO_MAXIMUM = -65504.0  # the least number of half precision: no network computes with less


def _each(size: Any, dims: int) -> list[int]:
    """A size for every dimension, where one may have been given for all."""
    return [int(s) for s in size] * (dims // len(size)) if isinstance(size, list | tuple) else [int(size)] * dims


def _padded_pool(graph: Graph, node: Node, arguments: list[Any]) -> Node | None:
    """A max pooling of what was padded with less than any value.

    Where both sides have the same, it is the pooling's own padding. Else the edge is repeated instead: a window that
    reaches over it has it inside already, so no maximum changes (if it has no gaps).
    """
    before = arguments[0]
    if before.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return None
    sides, value = list[Any](before.args[1]), [a for a in before.args[2:] if isinstance(a, int | float)]
    if not value or value[0] > NO_MAXIMUM or len(sides) != 4 or any(a == "reflect" for a in before.args[2:]):
        return None
    kernel = _each(arguments[1], 2)
    stride = _each(arguments[2], 2) if len(arguments) > 2 and arguments[2] else kernel
    own, (left, right, top, bottom) = _each(arguments[3] if len(arguments) > 3 else 0, 2), sides
    if min(sides) < 0 or any(own) or max(left, right) >= kernel[1] or max(top, bottom) >= kernel[0]:
        return None
    if left == right and top == bottom and 2 * left <= kernel[1] and 2 * top <= kernel[0]:
        return _call(graph, node, node.target, before.args[0], kernel, stride, [top, left], *arguments[4:])
    if len(arguments) > 4 and max(_each(arguments[4], 2)) > 1:
        return None  # a window with gaps may have the edge between two of its places
    edge = _call(graph, before, aten.pad.default, before.args[0], sides, "replicate")
    return _call(graph, node, node.target, edge, *arguments[1:])


def _of_the_batch(notes: list[str]) -> Rule:
    def rule(graph: Graph, node: Node) -> Node | None:
        """A batch norm that has no statistics of its own, or was never told to stop taking them, as what it computes
        from the batch it is given.
        """
        if node.target is not aten.batch_norm.default:
            return None
        x, weight, bias, mean, var, training, _, eps, *_ = list[Any](node.args)
        if not training and mean is not None and var is not None:
            return None
        notes.append(
            f"{node.name} has no statistics of its own and takes those of the batch it is given: it stays a float "
            "operation, and what an image gives depends on the images beside it"
        )
        value = x.meta["val"]
        dims, shape = [d for d in range(value.dim()) if d != 1], [1, -1, *[1] * (value.dim() - 2)]
        centred = _call(graph, node, aten.sub.Tensor, x, _call(graph, node, aten.mean.dim, x, dims, True))
        square = _call(graph, node, aten.mul.Tensor, centred, centred)
        spread = _call(graph, node, aten.add.Tensor, _call(graph, node, aten.mean.dim, square, dims, True), eps)
        result = _call(graph, node, aten.div.Tensor, centred, _call(graph, node, aten.sqrt.default, spread))
        for operation, factor in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
            if factor is not None:
                result = _call(graph, node, operation, result, _call(graph, node, aten.reshape.default, factor, shape))
        return result

    return rule


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


MASKING = {  # operations that an infinite number passes as what it is: less, or more, than any other
    aten.add.Tensor, aten.sub.Tensor, aten.where.self, aten.maximum.default, aten.minimum.default,
    aten.clamp.Tensor, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.cat.default, aten.index.Tensor,
    aten.scaled_dot_product_attention.default,
}  # fmt: skip


def _fill_infinite(module: GraphModule) -> None:
    """A mask of infinite numbers as a finite constant that is filled where a second one says: parameters and buffers
    are finite then, and one that is not is a broken model's.
    """
    graph = module.graph
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        value: object = _attribute(module, str(node.target))
        if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(value.isinf().any()):
            continue
        if bool(value.isnan().any()) or not all(_masks(u) for u in node.users):
            continue
        readers, made = list(node.users), node
        with graph.inserting_after(node):
            made = _constant(module, graph, f"{node.name}_finite", value.detach().nan_to_num(0, 0, 0), False)
        made.meta["val"] = node.meta["val"]
        for end, what in ((-math.inf, "least"), (math.inf, "most")):
            if not bool((where := value == end).any()):
                continue
            with graph.inserting_after(made):
                places = _constant(module, graph, f"{node.name}_{what}", where, False)
            places.meta["val"] = node.meta["val"] == end
            with graph.inserting_after(places):
                made = _call(graph, node, aten.masked_fill.Scalar, made, places, end)
        for reader in readers:
            reader.replace_input_with(node, made)
        graph.erase_node(node)


def _masks(node: Node) -> bool:
    """Whether a node, or whatever reads its result where it only moves it, takes infinite numbers as a mask."""
    return node.op == "output" or node.target in MASKING or (moves(node) and all(_masks(u) for u in node.users))


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
