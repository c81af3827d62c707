"""Functions that a file has in pieces, as one operation again: hard sigmoid, hard swish, GELU, layer and instance norm.

A function of one tensor is known by its values: whatever sums, products and clamps it was written with, what gives
GELU's values at every place that is tried is GELU.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

__all__ = ["as_one_function", "as_one_norm"]

aten = torch.ops.aten
KNOWN: dict[Any, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    aten.hardswish.default: (nn.functional.hardswish, {}),
    aten.hardsigmoid.default: (nn.functional.hardsigmoid, {}),
    aten.gelu.default: (nn.functional.gelu, {}),
}
TANH = {"approximate": "tanh"}
LAST = {aten.mul.Tensor, aten.div.Tensor, aten.clamp.default, aten.hardtanh.default}  # ends of such functions
ELEMENTWISE = LAST | {
    aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.neg.default, aten.clamp_min.default, aten.clamp.Tensor,
    aten.relu.default, aten.erf.default, aten.tanh.default, aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor,
    aten.minimum.default, aten.maximum.default, aten.hardsigmoid.default, aten.reciprocal.default, aten.mul.Scalar,
    aten.add.Scalar, aten.div.Scalar, aten.square.default,
}  # fmt: skip
PLACES = torch.linspace(-12, 12, 241, dtype=torch.float64)
CLOSE = 1e-5  # at each place: GELU and its approximation differ by 5e-4
LONGEST = 12  # operations that one function is written with
Value = Callable[[str], Tensor]


def as_one_function(value: Value) -> Callable[[Graph, Node], Node | None]:
    """A rule for `one_spelling`; `value`: of the parameter or buffer that a get_attr node names."""

    def rule(graph: Graph, node: Node) -> Node | None:
        if node.target not in LAST:
            return None
        order = {n: i for i, n in enumerate(graph.nodes)}
        inside, frontier = [node], _live(node)
        while len(inside) <= LONGEST:
            if len(frontier) == 1 and len(inside) > 1 and (found := _known(inside, frontier[0], value)) is not None:
                target, kwargs = found
                new = graph.call_function(target, (frontier[0],), kwargs)
                new.meta = dict(node.meta)
                return new
            last = max(frontier, key=order.__getitem__, default=None)
            if last is None or last.target not in ELEMENTWISE:
                return None
            inside.insert(0, last)
            frontier = list(dict.fromkeys([*(n for n in frontier if n is not last), *_live(last)]))
        return None

    return rule


def _live(node: Node) -> list[Node]:
    return list(dict.fromkeys(n for n in node.all_input_nodes if n.op != "get_attr"))


def _known(inside: list[Node], root: Node, value: Value) -> tuple[Any, dict[str, Any]] | None:
    """The operation whose values these operations give of a tensor."""
    if not _is_float(root) or root.meta["val"].shape != inside[-1].meta["val"].shape:
        return None
    values: dict[Node, Any] = {root: PLACES}
    for node in inside:
        for read in node.all_input_nodes:
            if read.op == "get_attr":
                constant = value(str(read.target)).detach()
                if constant.numel() != 1:
                    return None
                values[read] = constant.double().reshape(())
        if not all(n in values for n in node.all_input_nodes):
            return None
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    result = values[inside[-1]]
    for target, (function, kwargs) in [*KNOWN.items(), (aten.gelu.default, (_tanh_gelu, TANH))]:
        if torch.allclose(result, function(PLACES), rtol=CLOSE, atol=CLOSE):
            return target, kwargs
    return None


def _tanh_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def as_one_norm(value: Value) -> Callable[[Graph, Node], Node | None]:
    """A rule for `one_spelling`: (x - mean) / sqrt(variance + eps), of the last dimensions or of those of space, as a
    layer norm or an instance norm; and the scale and the shift behind a layer norm as its own."""

    def number(argument: Any) -> float | None:
        if isinstance(argument, Node):
            constant = value(str(argument.target)) if argument.op == "get_attr" else None
            return float(constant) if constant is not None and constant.numel() == 1 else None
        return float(argument) if isinstance(argument, int | float) else None

    def rule(graph: Graph, node: Node) -> Node | None:
        centred, deviation = _quotient(node, number)
        total = _squared_root(deviation)
        if total is not None and isinstance(centred, Node):
            terms = [(total.args[0], number(total.args[1])), (total.args[1], number(total.args[0]))]
            variance, eps = next(((v, e) for v, e in terms if e is not None), (None, None))
            dims = _mean_dims(variance)
            squared = variance.args[0] if dims and isinstance(variance, Node) else None
            source = _centred(centred, dims) if dims else None
            if source is not None and eps is not None and _is_square(squared, centred, number, dims):
                return _normed(graph, node, source, dims, eps)
        return _with_affine(graph, node, value)

    return rule


def _quotient(node: Node, number: Callable[[Any], float | None]) -> tuple[Any, Any]:
    """What is divided by which root: x / sqrt(v), or x * rsqrt(v), or x * (1 / sqrt(v))."""
    if node.target is aten.div.Tensor:
        return node.args[0], node.args[1]
    for a, b in (node.args[:2], node.args[1::-1]) if node.target is aten.mul.Tensor else ():
        if isinstance(b, Node) and b.target is aten.reciprocal.default:
            return a, b.args[0]
        if isinstance(b, Node) and b.target is aten.div.Tensor and number(b.args[0]) == 1:
            return a, b.args[1]
        if isinstance(b, Node) and b.target is aten.rsqrt.default:
            return a, b
    return None, None


def _squared_root(node: Any) -> Node | None:
    """The sum that a root, or one by a power of a half, is taken of."""
    if not isinstance(node, Node):
        return None
    halves = node.target is aten.pow.Tensor_Scalar and node.args[1] == 0.5
    total = node.args[0] if halves or node.target in (aten.sqrt.default, aten.rsqrt.default) else None
    return total if isinstance(total, Node) and total.target is aten.add.Tensor and not total.kwargs else None


def _mean_dims(node: Any) -> list[int]:
    """The dimensions that a mean which keeps them is taken over, from behind; empty for anything else."""
    if not isinstance(node, Node) or node.target is not aten.mean.dim or node.kwargs or len(node.args) < 3:
        return []
    source, dims, keep = list[Any](node.args)
    if not keep or not isinstance(source, Node) or not isinstance(dims, list | tuple):
        return []
    rank = source.meta["val"].dim()
    return sorted(int(d) % rank - rank for d in dims)


def _centred(node: Any, dims: list[int]) -> Node | None:
    """The tensor of which a difference to its own mean is taken."""
    if not isinstance(node, Node) or node.target is not aten.sub.Tensor or node.kwargs:
        return None
    source, mean = node.args
    same = isinstance(mean, Node) and _mean_dims(mean) == dims and mean.args[0] is source
    return source if same and isinstance(source, Node) else None


def _is_square(node: Any, centred: Node, number: Callable[[Any], float | None], dims: list[int]) -> bool:
    """Whether a node is the square of a centred tensor, of this one or of another that is the same."""
    if not isinstance(node, Node):
        return False
    power = node.target in (aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor) and number(node.args[1]) == 2
    product = node.target is aten.mul.Tensor and node.args[0] is node.args[1]
    if not (power or product or node.target is aten.square.default):
        return False
    base = node.args[0]
    return base is centred or (_centred(base, dims) is not None and _centred(base, dims) is _centred(centred, dims))


def _normed(graph: Graph, node: Node, source: Node, dims: list[int], eps: float) -> Node | None:
    shape, rank = source.meta["val"].shape, source.meta["val"].dim()
    sizes = [int(s) for s in shape[dims[0] :]]
    if dims == list(range(2 - rank, 0)) and rank > 3:
        new = graph.call_function(aten.instance_norm.default, (source, None, None, None, None, True, 0.1, eps, False))
    elif dims == list(range(-len(dims), 0)):
        new = graph.call_function(aten.layer_norm.default, (source, sizes, None, None, eps))
    else:
        return None
    new.meta = dict(node.meta)
    return new


def _with_affine(graph: Graph, node: Node, value: Value) -> Node | None:
    """A layer norm with the constants that it is scaled by, and then shifted by, for its own."""
    if node.target not in (aten.mul.Tensor, aten.add.Tensor) or node.kwargs or len(node.args) != 2:
        return None
    for norm, constant in (node.args, node.args[::-1]):
        if (
            isinstance(norm, Node)
            and norm.target is aten.layer_norm.default
            and len(norm.users) == 1
            and isinstance(constant, Node)
            and constant.op == "get_attr"
        ):
            source, sizes, weight, bias, eps = _norm_arguments(norm.args)
            if list(value(str(constant.target)).shape) != list(sizes) or bias is not None:
                return None
            if node.target is aten.mul.Tensor:
                if weight is not None:
                    return None
                weight = constant
            else:
                bias = constant
            new = graph.call_function(aten.layer_norm.default, (source, sizes, weight, bias, eps))
            new.meta = dict(node.meta)
            return new
    return None


def _norm_arguments(args: Iterable[Any]) -> list[Any]:
    given = list(args)[:5]
    return [*given, *[None, None, 1e-5][len(given) - 2 :]]
