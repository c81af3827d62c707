"""Regions of a program that torch.export keeps as graphs of their own: under `no_grad` or `autocast`, checkpointed.

They change how a program is run, not what it computes in float32: here each is put in the place where it is called.
"""

import operator

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from zaq.ir.nodes import attribute

__all__ = ["inline_regions"]

# The operators that call a region, a graph among their arguments; what that graph reads stands behind it.
CALLS = {
    "invoke_subgraph",
    "tag_activation_checkpoint",
    "wrap",
    "wrap_activation_checkpoint",
    "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
}


def inline_regions(exported: ExportedProgram) -> list[str]:
    """Put the nodes of every region into a program's graph (in place), however deep they lie. Returns the precisions
    that `autocast` computed in there, as words.
    """
    renamed: dict[str, str] = {}
    cast: set[str] = set()
    while calls := [n for n in exported.graph.nodes if _region(exported.graph_module, n) is not None]:
        for call in calls:
            if str(call.target) == "wrap_with_autocast" and call.args[2]:
                cast.add(str(call.args[1]).removeprefix("torch."))
            renamed |= _inline(exported.graph_module, call)
    if not renamed:
        return []
    for node in list(exported.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # that a tensor has autocast's precision
            exported.graph.erase_node(node)
    for spec in exported.graph_signature.output_specs:
        name = getattr(spec.arg, "name", None)
        while name in renamed:
            name = renamed[name]
        if name is not None:
            spec.arg.name = name
    exported.graph.eliminate_dead_code()
    exported.graph_module.recompile()
    return sorted(cast)


def _region(module: GraphModule, node: Node) -> int | None:
    """Where among a node's arguments the graph stands that it calls; None where it calls none."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator) or node.target.name() not in CALLS:
        return None
    for index, argument in enumerate(node.args):
        if isinstance(argument, Node) and argument.op == "get_attr":
            found: object = attribute(module, str(argument.target))
            if isinstance(found, GraphModule):
                return index
    return None


def _inline(module: GraphModule, call: Node) -> dict[str, str]:
    """Copy a region's nodes before its call, and let them be read instead of it. Returns the old names and the new."""
    graph: Graph = module.graph
    index = _region(module, call)
    assert index is not None
    body_node = call.args[index]
    assert isinstance(body_node, Node)
    body: object = attribute(module, str(body_node.target))
    assert isinstance(body, GraphModule)
    inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
    given = [a for a in call.args[index + 1 :] if not isinstance(a, str)]  # a str is a region's own name
    known = dict(zip(inputs, given, strict=True))
    for node in body.graph.nodes:
        if node.op == "get_attr":  # a constant, or a region within: it moves out with its node
            name = f"{body_node.target}_{node.target!s}".replace(".", "_")
            setattr(module, name, attribute(body, str(node.target)))
            node.target = name
    with graph.inserting_before(call):
        results = graph.graph_copy(body.graph, known)
    leaves = pytree.tree_leaves(results)
    renamed = {}
    for reader in list(call.users):
        if reader.target is operator.getitem:
            number = reader.args[1]
            assert isinstance(number, int)
            new = leaves[number]
            renamed[reader.name] = new.name
            reader.replace_all_uses_with(new)
            graph.erase_node(reader)
    if call.users:
        renamed[call.name] = leaves[0].name
        call.replace_all_uses_with(leaves[0])
    graph.erase_node(call)
    return renamed
