"""Which layers pay for their integers: a placement found by timing, for a network of this machine's onnxruntime.

An integer kernel may be slower than float's (a depthwise convolution of 5x5 without VNNI takes five times as long), and
one between two functions that have none pays for two conversions. Each layer is in integers or in float; what it costs
either way is measured, and so is what stands between two layers; two neighbours of unlike kind pay for a conversion.
The labels of least sum are a minimum cut of that graph (Greig, Porteous and Seheult 1989). Sums of kernels' times are
no file's time, so each labelling is written, timed beside the others and the float network, and measured again.
"""

import copy
import math
import re
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import torch
from onnx import ModelProto
from torch.fx import GraphModule, Node

from zaq.compute.random import drawing
from zaq.config.bits import STORED, QConfig
from zaq.config.card import Card
from zaq.cost.kernel_times import Times, kernel_times
from zaq.cost.latency import FLOAT as FLOAT_FILE
from zaq.cost.latency import SLOWER, measure
from zaq.engine.progress import Progress
from zaq.engine.task import Task
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.ir.nodes import shape_of
from zaq.ir.ops import WEIGHTED
from zaq.quant.asked import all_layers, ask, layer_name
from zaq.quant.edges import weighted_layers
from zaq.quant.student import Student

__all__ = ["ALL", "Fastest", "fastest", "labels"]

ROUNDS = 3  # labellings that are tried, after that with all layers in integers
SECONDS = 3.0  # that they are timed for together
WORTH = 1.02  # what leaves layers in float has to be so much faster
USUAL = 10.0, 3e-4  # microseconds of a conversion, and of each element, where none was measured
INTEGERS, FLOATS = "integers", "floats"  # the ends of the cut
ALL = "all in integers"


@dataclass(frozen=True)
class Fastest:
    """What was found. `floats`: the names of the layers' modules that are left in float; speeds are how many times as
    fast as the float network the file is, one image on one thread: `before` with all layers in integers, and `after`.
    """

    qconfig: QConfig
    floats: tuple[str, ...]
    before: float
    after: float

    def sentence(self) -> str:
        """For the report."""
        count = len(self.floats)
        left = f"{count} layer{'s' * (count > 1)} compute{'s' * (count == 1)}" if count else "no layer computes"
        return (
            f"placed by time in onnxruntime here: {left} in float, with weights stored in 8 bits; {self.after:.2f} "
            f"times as fast as float, {self.before:.2f} with all layers in integers"
            + ("" if self.after >= SLOWER else ": no placement that was tried is faster than float")
        )


def fastest(teacher: GraphModule, card: Card, qconfig: QConfig, progress: Progress | None = None) -> Fastest:
    """The QConfig with those layers of a folded teacher left in float that integers make slower on this machine.

    Raises as `Student` and `translate` do, for what cannot be quantized or exported.
    """
    teacher, progress = copy.deepcopy(teacher), progress or Progress()
    ask(teacher, qconfig)
    layers = {n.name: n for n in weighted_layers(teacher)}
    elements = {name: math.prod(shape_of(node) or (1,)) for name, node in layers.items()}
    first = _Trial.of(teacher, card, qconfig, frozenset())
    trials, plain = {ALL: first}, first.file("float")
    integers, floats = first.times(first.file("qdq")), first.times(plain)
    for number in progress.track("timing kernels", ROUNDS):
        left = labels(integers, floats, elements)
        if len(left) == len(layers):  # something has to be quantized: where it costs least
            left -= {min(left, key=lambda name: integers.layers.get(name, 0.0) - floats.layers.get(name, 0.0))}
        if left in [t.left for t in trials.values()]:
            break
        trial = trials[f"trial {number}"] = _Trial.of(teacher, card, qconfig, left)
        integers, floats = _seen(trial.times(trial.file("qdq")), left, integers, floats)
    files = {name: trial.file("qdq") for name, trial in trials.items()}
    rows = measure({FLOAT_FILE: plain, **files}, (1,), (1,), SECONDS, progress, card.input)
    speeds = {row.name: row.speedup or 0.0 for row in rows if row.name in trials}
    best = max(speeds, key=speeds.__getitem__)
    best = best if speeds[best] >= WORTH * speeds[ALL] else ALL
    names = tuple(layer_name(layers[name]) for name in layers if name in trials[best].left)
    return Fastest(trials[best].qconfig, names, speeds[ALL], speeds[best])


def labels(integers: Times, floats: Times, elements: dict[str, int]) -> frozenset[str]:
    """The layers that are to be in float for the least sum of times: those on float's side of the minimum cut.

    integers, floats: times of the files in which all layers are one and the other. elements: of what each layer
    writes, all that is converted where its neighbour is of the other kind.
    """
    start, each = _line(integers.conversions)
    graph = nx.DiGraph()
    seen = integers.layers.keys() & floats.layers.keys()  # onnxruntime may have taken a layer into another kernel
    pays = {n: [integers.layers[n], floats.layers[n]] if n in seen else [0.0, 0.0] for n in elements}
    for a, b in integers.between.keys() | floats.between.keys():
        both = integers.between.get((a, b), 0.0), floats.between.get((a, b), 0.0)
        for name in (a, b):
            pays[name] = [own + half / 2 for own, half in zip(pays[name], both, strict=True)]
        apart = both[1] + start + each * elements[a]
        cut = max(apart - sum(both) / 2, 0.0)
        graph.add_edge(a, b, capacity=cut)
        graph.add_edge(b, a, capacity=cut)
    for name, (integer, in_float) in pays.items():
        graph.add_edge(INTEGERS, name, capacity=in_float)
        graph.add_edge(name, FLOATS, capacity=integer)
    _, (_, side) = nx.minimum_cut(graph, INTEGERS, FLOATS)
    return frozenset(side - {FLOATS})


def _line(conversions: list[tuple[int, float]]) -> tuple[float, float]:
    """Microseconds of a conversion, and of each of its elements, by least squares."""
    sizes, times = np.array(conversions or [(0, 0.0)], float).T
    if len(set(sizes)) < 2:
        return USUAL
    each, start = np.polyfit(sizes, times, 1)
    return max(float(start), 0.0), max(float(each), 0.0)


def _seen(mixed: Times, left: frozenset[str], integers: Times, floats: Times) -> tuple[Times, Times]:
    """What is known once a file was run with some layers `left` in float: there they may be slower than in a file of
    floats, whose layouts no conversion interrupts."""
    now = {name: time for name, time in mixed.layers.items() if name in left}
    rest = {name: time for name, time in mixed.layers.items() if name not in left}
    between = {pair: time for pair, time in mixed.between.items() if left.issuperset(pair)}
    return (
        replace(integers, layers=integers.layers | rest),
        replace(floats, layers=floats.layers | now, between=floats.between | between),
    )


@dataclass(frozen=True)
class _Trial:
    """A network with some layers left in float, rounded on noise: what it answers is of no use, how long it takes is.

    layers: by their names in the teacher, the nodes of the program that its files are made from.
    """

    left: frozenset[str]
    qconfig: QConfig
    card: Card
    layers: dict[str, Node]
    translated: ModelProto

    @classmethod
    @torch.no_grad()
    def of(cls, teacher: GraphModule, card: Card, qconfig: QConfig, left: frozenset[str]) -> "_Trial":
        named = {re.escape(layer_name(n)): STORED for n in all_layers(teacher) if n.name in left}
        qconfig = replace(qconfig, layers=qconfig.layers | named)
        asked = copy.deepcopy(teacher)
        ask(asked, qconfig)
        task = Task(asked, qconfig, card)
        student = Student(asked, qconfig, card, search=False, unlike=task.unlike)
        with drawing(0), student.watching("minmax"):
            student(task.noise(2))
        exported = program_of(student.module)
        nodes = [n for n in exported.graph.nodes if n.target in WEIGHTED]
        pairs = zip(all_layers(teacher), nodes, strict=False)  # both in the order in which they are computed
        free = set(weighted_layers(teacher))  # the others the user left in float
        layers = {own.name: node for own, node in pairs if own in free}
        return cls(left, qconfig, card, layers, translate(exported))

    def file(self, form: str) -> bytes:
        """Its file of a form."""
        return in_form(self.translated, {}, form, target=self.qconfig.runtime)

    def times(self, content: bytes) -> Times:
        """Where the time of a file of it goes."""
        return kernel_times(content, self.layers, self.card.input)
