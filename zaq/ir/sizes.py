"""Height and width that stay open: what a graph does at two sizes is put into one that does it at any.

A graph is captured at one size, so that everything that follows from a size is a number in it. Captured at another size
it must be the same graph with other numbers, and each of those must be the size of a tensor, or made from it: then the
number becomes that size. Where anything else differs, a weight for each position, a pooling to a fixed grid, a constant
made for the image, the network depends on the size, and stays at it; the node where that shows is named. A third size,
at which nothing was looked up, has to come out right, too.
"""

import copy
import itertools
import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from zaq.errors import UserError
from zaq.ir.capture import export_program
from zaq.ir.nodes import attribute, input_node, module_of, source_line

__all__ = ["TRIED", "WORDS", "dimensions", "open_up", "other_sizes"]

aten = torch.ops.aten
Image = tuple[int, ...]  # (C, H, W)
WORDS = {2: "height", 3: "width"}  # by the dimension of (N, C, H, W)
LETTERS = {"H": 2, "W": 3}
TRIED = 2  # other sizes
CLOSE = 1e-4  # of the greatest output: another size sums in another order
UPSAMPLINGS = {
    aten.upsample_nearest2d.vec: 2, aten.upsample_bilinear2d.vec: 3, aten.upsample_bicubic2d.vec: 3,
}  # fmt: skip  # and where their factors stand; the size is argument 1
# Operations that may be told a size; of any other, whatever it is told is how it computes.
TOLD = {
    aten.reshape.default, aten.expand.default, aten.slice.Tensor, aten.new_zeros.default, aten.new_ones.default,
    aten.new_full.default, *UPSAMPLINGS,
}  # fmt: skip


class Bound(Exception):
    """Why sizes cannot stay open."""


def dimensions(text: str) -> tuple[int, ...]:
    """`H,W`, `H` or `W`, as `--dynamic` has them, as dimensions of (N, C, H, W). Raises UserError for anything else."""
    names = [n.strip().upper() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in LETTERS:
            raise UserError(f"--dynamic {text}: {name!r} is none of H and W; write H,W, or one of them.")
    return tuple(sorted({LETTERS[n] for n in names}))


def open_up(
    read: Callable[[Image], GraphModule], image: Image, dims: tuple[int, ...]
) -> tuple[GraphModule, tuple[str, ...]]:
    """The graph that `read` gives for images of (C, H, W), with those of its `dims` (2: height, 3: width) left open
    that nothing in it depends on (`open_sizes` knows them); and what a report has to say of the others.

    Raises what `read` raises for the image itself; for other sizes that says that they are none to be had.
    """
    base, why = read(image), dict[int, str]()
    if not dims:
        return base, ()
    for tried in [dims, *([(d,) for d in reversed(dims)] if len(dims) > 1 else [])]:
        try:
            graph = _opened(base, read, image, tried)
        except Bound as error:
            why |= dict.fromkeys(tried, str(error))
            continue
        return graph, tuple(_note(image, d, why[d]) for d in dims if d not in tried)
    return base, tuple(_note(image, d, why[d]) for d in dims)


def other_sizes(image: Image, dims: tuple[int, ...]) -> Iterator[Image]:
    """Sizes to try a network of open sizes at: odd ones first, which not every network takes, then multiples."""
    both: list[tuple[Callable[[int], int], Callable[[int], int]]] = [
        (lambda s: (3 * s // 2) | 1, lambda s: (2 * s) | 1),
        (lambda s: (7 * s // 4) | 1, lambda s: (5 * s // 4 + 2) | 1),
        (lambda s: s + 32, lambda s: s + 64),
        (lambda s: s + 64, lambda s: s + 32),
        (lambda s: 2 * s, lambda s: 2 * s),
        (lambda s: 3 * s, lambda s: 3 * s),
    ]
    for grow in both:
        sizes = [f(s) if d in dims else s for f, s, d in zip(grow, image[1:], (2, 3), strict=True)]
        yield (image[0], *sizes)


def _note(image: Image, dim: int, why: str) -> str:
    return f"the {WORDS[dim]} is fixed at {image[dim - 1]}, though the source leaves it open: {why}"


def _opened(
    base: GraphModule, read: Callable[[Image], GraphModule], image: Image, dims: tuple[int, ...]
) -> GraphModule:
    found: list[tuple[Image, GraphModule]] = []
    failed = ""
    for size in other_sizes(image, dims):
        try:
            with _silence():
                found.append((size, read(size)))
        except Exception as error:  # of whatever kind: that it fails at another size is the answer
            failed = failed or f"at {'x'.join(map(str, size[1:]))} {str(error).partition('. Rewrite')[0].rstrip('.')}"
        if len(found) == TRIED:
            break
    else:
        raise Bound(failed)
    graph = _merged(base, found[0][1])
    input_node(graph).meta["open"] = dims
    for size, there in [(image, base), *found]:
        _require_equal(graph, there, size)
    try:
        with _silence():
            program = export_program(graph)
    except Exception as error:  # of torch.export's many kinds
        raise Bound(f"torch.export cannot leave it open: {(str(error).splitlines() or [''])[0]}") from error
    for value in (n.meta["val"] for n in program.graph.nodes if n.name in program.graph_signature.user_inputs):
        if fixed := [WORDS[d] for d in dims if isinstance(value.shape[d], int)]:
            raise Bound(f"torch.export fixes the {' and the '.join(fixed)} of this network")
    return graph


@contextmanager
def _silence() -> Iterator[None]:
    """torch logs what fails inside of it, with all of its stack: here failing is an answer."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _require_equal(graph: GraphModule, there: GraphModule, size: Image) -> None:
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    where = f"at {'x'.join(map(str, size[1:]))}"
    try:
        with torch.no_grad():
            ours, theirs = (pytree.tree_leaves(g(x)) for g in (graph, there))
    except RuntimeError as error:
        raise Bound(f"it does not run {where}: {str(error).strip().splitlines()[0]}") from error
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or _apart(a.double(), b.double()) > CLOSE:
            raise Bound(f"the network computes something else {where}")


def _apart(a: Tensor, b: Tensor) -> float:
    """The greatest difference, of the greatest value."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if b.numel() else 0.0


def _merged(base: GraphModule, other: GraphModule) -> GraphModule:
    """A copy of `base` in which every number that is another in `other` is the size of a tensor."""
    merged = copy.deepcopy(base)
    twins: dict[Node, Node] = {}
    for node, twin in zip(list(merged.graph.nodes), list(other.graph.nodes), strict=False):
        if (node.op, node.op == "call_function" and node.target) != (
            twin.op,
            twin.op == "call_function" and twin.target,
        ):
            raise Bound(f"another size is computed in another way, from {_where(node)} on")
        if node.op == "get_attr":
            here, there = attribute(merged, str(node.target)), attribute(other, str(twin.target))
            if here.shape != there.shape or not torch.equal(here, there):
                raise Bound(f"{node.target!r} is made for the size; {_where(next(iter(node.users)))} reads it")
        _match(node, twin, twins)
        twins[node] = twin
    merged.recompile()
    return merged


def _match(node: Node, twin: Node, twins: dict[Node, Node]) -> None:
    """Make the arguments of a node right for both sizes (in place)."""
    ours, form = pytree.tree_flatten((node.args, node.kwargs))
    theirs, their_form = pytree.tree_flatten((twin.args, twin.kwargs))
    if form != their_form:
        raise Bound(f"another size is computed in another way, from {_where(node)} on")
    apart = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if twins.get(a, a) != b]
    if not apart:
        return
    if node.target not in TOLD or not all(type(v[i]) is int for v in (ours, theirs) for i in apart):
        raise Bound(
            f"{_where(node)} is given {[ours[i] for i in apart]}, and {[theirs[i] for i in apart]} at another size"
        )
    if node.target in UPSAMPLINGS and (factors := _factors(node, twin)):
        args = list(node.args)
        args[1], args[UPSAMPLINGS[node.target]] = None, factors
        node.args = tuple(args)
        return
    if node.target is aten.reshape.default and _one_left(node, ours, apart, twins):
        ours[apart[0]] = -1
    else:
        for i in apart:
            ours[i] = _size(node, twins, ours[i], theirs[i])
    node.args, node.kwargs = pytree.tree_unflatten(ours, form)


def _factors(node: Node, twin: Node) -> list[float] | None:
    """Whole factors by which both sizes are upsampled."""
    found = []
    for n in (node, twin):
        before, after = _shape(n.args[0])[-2:], _shape(n)[-2:]
        if any(a % b for a, b in zip(after, before, strict=True)):
            return None
        found.append([float(a // b) for a, b in zip(after, before, strict=True)])
    return found[0] if found[0] == found[1] else None


def _one_left(node: Node, ours: list[Any], apart: list[int], twins: dict[Node, Node]) -> bool:
    """Whether one size follows from the others: none is left out yet, or the batch is, which is then asked for."""
    sizes = ours[1:]
    if len(apart) != 1 or sizes.count(-1) > 1:
        return False
    if -1 in sizes:
        image = next(n for n in twins if n.op == "placeholder" and n.users)
        at = sizes.index(-1)
        if str(_shape(node)[at]) != str(_shape(image)[0]):
            return False
        ours[1 + at] = _asked(node, image, 0)
    return True


def _size(node: Node, twins: dict[Node, Node], here: int, there: int) -> Node:
    """A number that is `here` at one size and `there` at the other: the size of a tensor, a product of two, a multiple
    or a part of one.
    """
    near = [n for n in node.all_input_nodes if _shape(n)]
    pairs = {(n, d): pair for n in [*near, *reversed(twins)] for d, pair in _pairs(n, twins)}
    for (source, dim), pair in pairs.items():
        if pair == (here, there):
            return _asked(node, source, dim)
    close = {key: pair for key, pair in pairs.items() if key[0] in near or key[0].op == "placeholder"}
    for ((one, i), (a, b)), ((two, j), (c, d)) in itertools.combinations(close.items(), 2):
        if (a * c, b * d) == (here, there):
            return _computed(node, operator.mul, _asked(node, one, i), _asked(node, two, j), here)
    for (source, dim), (a, b) in close.items():
        if here % a == 0 and here // a * b == there:
            return _computed(node, operator.mul, _asked(node, source, dim), here // a, here)
        if here and a // (a // here) == here and b // (a // here) == there:
            return _computed(node, operator.floordiv, _asked(node, source, dim), a // here, here)
        if here and -(-a // -(-a // here)) == here and -(-b // -(-a // here)) == there:  # rounded up
            parts = -(-a // here)
            more = _computed(node, operator.add, _asked(node, source, dim), parts - 1, a + parts - 1)
            return _computed(node, operator.floordiv, more, parts, here)
    raise Bound(f"{_where(node)} is given {here}, and {there} at another size, which is the size of no tensor")


def _pairs(node: Node, twins: dict[Node, Node]) -> Iterator[tuple[int, tuple[int, int]]]:
    """The dimensions of a tensor that differ between the two sizes."""
    for dim, pair in enumerate(zip(_shape(node), _shape(twins.get(node)), strict=False)):
        if all(isinstance(s, int) and s > 0 for s in pair) and pair[0] != pair[1]:
            yield dim, pair


def _shape(node: object) -> list[Any]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return list(value.shape) if isinstance(value, Tensor) else []


def _asked(node: Node, source: Node, dim: int) -> Node:
    """The size of a tensor, asked for in front of a node."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(aten.sym_size.int, (source, dim))
    made.meta["val"] = _shape(source)[dim]
    return made


def _computed(node: Node, how: Callable[..., Any], one: Node, other: Node | int, value: int) -> Node:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(how, (one, other))
    made.meta["val"] = value
    return made


def _where(node: Node) -> str:
    """The operation and where it stands: in which part of the network, and in which line of its code."""
    part, line = module_of(node), source_line(node)
    place = [p for p in (part, line if line != node.name and "/zaq/sources/" not in line else "") if p]
    return f"{node.name!r}" + (f" ({', '.join(place)})" if place else "")
