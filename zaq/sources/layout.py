"""The order of an image's dimensions: (N, C, H, W) inside of zaq; (N, H, W, C) as TensorFlow and cameras have it.

A network that takes the second is read from behind what turns its images, and its files turn them again
(`zaq.sources.frame`).
"""

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from zaq.errors import SourceError
from zaq.ir.nodes import input_node
from zaq.ir.ops import CONVS

__all__ = ["LAYOUTS", "NCHW", "NHWC", "is_nhwc", "layout_in", "turn"]

aten = torch.ops.aten
LAYOUTS = {  # and by what a graph shows it
    "NCHW": "a convolution reads it as it is",
    "NHWC": "what reads it turns it to (N, C, H, W)",
}
NCHW, NHWC = [0, 3, 1, 2], [0, 2, 3, 1]  # from the other to it
COLOURS = (1, 3, 4)
TURNS = {
    aten.permute.default, aten.transpose.int, aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int,
    aten.moveaxis.intlist,
}  # fmt: skip
SAME = {aten.to.dtype, aten._to_copy.default, aten.clone.default, aten.contiguous.default, aten.alias.default}


def is_nhwc(spec: str, name: str, sizes: Sequence[int], found: str, said: str) -> tuple[bool, tuple[str, ...]]:
    """Whether the image `name` comes as (N, H, W, C): as is said, as is found in the graph, else by its sizes (0 for
    open ones); and what a report has to say of that.

    Raises SourceError where what is said is not what is found.
    """
    if said and len(sizes) not in (0, 4):
        raise SourceError(
            f"{spec}: --layout {said}: its input {name!r} has {len(sizes)} dimensions, and images have 4."
        )
    if said and found and said != found:
        raise SourceError(
            f"{spec}: --layout {said}: its input {name!r} is {found}, for {LAYOUTS[found]}. Leave --layout out."
        )
    if said or found:
        return (said or found) == "NHWC", ()
    if len(sizes) != 4 or sizes[3] not in COLOURS or sizes[1] in COLOURS:
        return False, ()
    return True, (
        f"its input {name!r} of the sizes {list(sizes)} counts as NHWC: (N, H, W, C); --layout NCHW, if it is not",
    )


def layout_in(image: Node) -> str:
    """The layout that a graph shows of its image; empty where it shows none."""
    if _turned(image) is not None:
        return "NHWC"
    return "NCHW" if any(u.target in CONVS for u in _readers(image)) else ""


def turn(gm: GraphModule) -> None:
    """Let a graph of (N, H, W, C) take (N, C, H, W), in place: without what turns it, or else turned back first."""
    image = input_node(gm)
    turned, value = _turned(image), image.meta["val"]
    with gm.graph.inserting_after(image):
        back = gm.graph.call_function(aten.permute.default, (image, NHWC))
    back.meta["val"], image.meta["val"] = value, value.permute(NCHW)
    batch = [u for u in image.users if u.target is aten.sym_size.int and u.args[1] == 0]  # the same in both
    image.replace_all_uses_with(back, lambda u: u is not back and u not in batch)
    if turned is not None:
        turned.replace_all_uses_with(image)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _readers(node: Node) -> list[Node]:
    """What reads a node's values, and not only its sizes and type."""
    return [u for u in node.users if u.target is not aten.sym_size.int and "_assert" not in str(u.target)]


def _turned(image: Node) -> Node | None:
    """The node that holds an image (N, H, W, C) as (N, C, H, W), where nothing else is made of it before."""
    node, probe = image, torch.empty(2, 5, 7, 3, device="meta")
    while len(readers := _readers(node)) == 1:
        (node,) = readers
        if node.target in TURNS:
            assert callable(node.target)
            probe = node.target(probe, *node.args[1:], **node.kwargs)
        elif node.target not in SAME:
            return None
        if probe.shape == (2, 3, 5, 7):
            return node
    return None
