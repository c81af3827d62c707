"""What each kernel of a file takes in onnxruntime on this machine, and which layer of the network it works for."""

import collections
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto
from torch.fx import Node

from zaq.config.files import scratch
from zaq.export.ends import declare
from zaq.export.session import feed, session
from zaq.ir.ops import WEIGHTED

__all__ = ["Times", "kernel_times"]

RUNS = 30  # medians of so many; a network of half a second has as many as TOGETHER has room for
TOGETHER = 1.5  # seconds
PRODUCTS = {
    "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
    "QLinearMatMul",
}  # fmt: skip
CONVERSIONS = {"QuantizeLinear": 1, "DequantizeLinear": 4}  # and bytes of an element of what they write


@dataclass
class Times:
    """Microseconds, one image on one thread.

    layers: of each layer's own kernel, by its node's name, with what only it needs of what stands at the network's
        ends.
    between: of what stands between two layers, by the pair; 0 where nothing does.
    conversions: (elements, microseconds) of each kernel that makes integers of floats, or floats of integers.
    """

    layers: dict[str, float] = field(default_factory=dict)
    between: dict[tuple[str, str], float] = field(default_factory=dict)
    conversions: list[tuple[int, float]] = field(default_factory=list)


def kernel_times(content: bytes, layers: Mapping[str, Node], image: tuple[int, ...]) -> Times:
    """Run a file on noise of (C, H, W) and tell where its time goes.

    layers: by the names that they are to have, the nodes of the program that the file was made from.
    A kernel that is no layer's own counts in equal parts for each pair of a layer before and a layer behind it.
    """
    microseconds, sizes, graph = _profiled(content, image)
    named = {n.name: name for name, n in layers.items()}  # the node's own, and those of what is fused into it
    named |= {inside: name for name, n in layers.items() for inside in _fusible(n) if inside not in named}
    owners = {index: _owner(node, named) for index, node in enumerate(graph.node)}
    before, behind = _neighbours(graph, owners)
    found = Times()
    for index, node in enumerate(graph.node):
        spent, owner = microseconds.get(node.name, 0.0), owners[index]
        if owner:
            found.layers[owner] = found.layers.get(owner, 0.0) + spent
            for left in before[index]:
                found.between.setdefault((left, owner), 0.0)
            continue
        if node.op_type in CONVERSIONS and node.name in sizes:
            found.conversions.append((sizes[node.name] // CONVERSIONS[node.op_type], spent))
        pairs = [(a, b) for a in before[index] for b in behind[index]]
        for pair in pairs:
            found.between[pair] = found.between.get(pair, 0.0) + spent / len(pairs)
        ends = [] if pairs else [*before[index], *behind[index]]
        for name in ends:
            found.layers[name] = found.layers.get(name, 0.0) + spent / len(ends)
    return found


def _profiled(content: bytes, image: tuple[int, ...]) -> tuple[dict[str, float], dict[str, int], GraphProto]:
    """Of each kernel by name: microseconds, and bytes of what it writes; and the graph that onnxruntime ran."""
    model = onnx.load_model_from_string(content)
    declare(model, 1, image)
    with scratch() as folder:
        run = session(model.SerializeToString(), 1, folder / "optimized.onnx", profile=folder / "profile")
        given = feed(run, torch.from_numpy(np.random.default_rng(0).standard_normal((1, *image), np.float32)))
        end = time.perf_counter() + TOGETHER
        for _ in range(RUNS):
            run.run(None, given)
            if time.perf_counter() > end:
                break
        events = json.loads((folder / run.end_profiling()).read_text())
        graph = onnx.load(folder / "optimized.onnx").graph
    found, sizes = collections.defaultdict[str, list[float]](list), dict[str, int]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            found[name].append(event["dur"])
            sizes[name] = int(event["args"].get("output_size", 0))
    return {name: float(np.median(times)) for name, times in found.items()}, sizes, graph


def _owner(node: NodeProto, named: Mapping[str, str]) -> str | None:
    """The layer that a kernel computes: onnxruntime calls it as that, or as the function that it fused into it."""
    name = re.sub(r"(_nchwc|_token_\d+)+$", "", node.name).removeprefix("node_")
    return named.get(name) if node.op_type in PRODUCTS else None


def _fusible(layer: Node) -> list[str]:
    """The names of the functions of one tensor behind a layer that may be computed in its kernel."""
    chain, node = list[str](), layer
    while len(node.users) == 1:
        (node,) = node.users
        if node.target in WEIGHTED or sum(n.op == "call_function" for n in node.all_input_nodes) > 1:
            break
        chain.append(node.name)
    return chain


def _neighbours(graph: GraphProto, owners: dict[int, str | None]) -> tuple[list[set[str]], list[set[str]]]:
    """Of each kernel the layers right before it and right behind it, with no other layer between."""
    before, behind = list[set[str]](), list[set[str]]()
    reach = collections.defaultdict[str, set[str]](set)
    for index, node in enumerate(graph.node):
        before.append(set().union(*(reach[name] for name in node.input)))
        for name in node.output:
            reach[name] = {owner} if (owner := owners[index]) else before[-1]
    reach = collections.defaultdict(set)
    for index, node in reversed(list(enumerate(graph.node))):
        behind.insert(0, set().union(*(reach[name] for name in node.output)))
        for name in node.input:
            reach[name] = reach[name] | ({owner} if (owner := owners[index]) else behind[0])
    return before, behind
