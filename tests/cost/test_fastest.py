"""Which layers are left in float: the cut against all labellings, and a whole search whose clock is ours."""

import itertools
import random
from typing import Any

import pytest
from zoo import CARD, images, traced

import zaq
from zaq.api import placed_by_time, teacher_of
from zaq.config.bits import STORED, QConfig
from zaq.cost import fastest as module
from zaq.cost.fastest import labels
from zaq.cost.kernel_times import Times, kernel_times
from zaq.cost.latency import FLOAT, Latency
from zaq.errors import BitsError
from zaq.methods.rtn import RTN

PER_ELEMENT, START = 0.01, 2.0
LINE = [(100, START + 100 * PER_ELEMENT), (300, START + 300 * PER_ELEMENT)]


def cost(integers: Times, floats: Times, elements: dict[str, int], left: frozenset[str]) -> float:
    """Of a labelling, term by term as `labels` says them."""
    total = sum((floats if name in left else integers).layers[name] for name in elements)
    for pair in integers.between.keys() | floats.between.keys():
        both = integers.between.get(pair, 0.0), floats.between.get(pair, 0.0)
        inside = len(left.intersection(pair))
        apart = max(both[1] + START + PER_ELEMENT * elements[pair[0]], sum(both) / 2)
        total += apart if inside == 1 else both[inside // 2]
    return total


@pytest.mark.parametrize("seed", range(20))
def test_no_labelling_is_cheaper_than_the_cut(seed: int) -> None:
    draw = random.Random(seed)
    names = "abcdef"
    times = [Times({n: draw.uniform(1, 9) for n in names}, conversions=LINE) for _ in range(2)]
    elements = {n: draw.randrange(50, 800) for n in names}
    for pair in itertools.combinations(names, 2):
        for found in times:
            if draw.random() < 0.4:
                found.between[pair] = draw.uniform(0, 6)
    integers, floats = times
    everything = [frozenset(left) for size in range(7) for left in itertools.combinations(names, size)]
    least = min(cost(integers, floats, elements, left) for left in everything)
    assert cost(integers, floats, elements, labels(integers, floats, elements)) == pytest.approx(least)


def test_a_slow_layer_stays_where_conversions_would_cost_more() -> None:
    integers = Times({"a": 1.0, "slow": 20.0, "c": 1.0}, {("a", "slow"): 0.0, ("slow", "c"): 0.0}, LINE)
    floats = Times({"a": 5.0, "slow": 4.0, "c": 5.0}, {("a", "slow"): 0.0, ("slow", "c"): 0.0}, LINE)
    assert labels(integers, floats, dict.fromkeys(["a", "slow", "c"], 100)) == {"slow"}
    assert labels(integers, floats, dict.fromkeys(["a", "slow", "c"], 1000)) == {"a", "slow", "c"}
    assert labels(integers, floats, dict(zip(["a", "slow", "c"], (9000, 9000, 1), strict=True))) != {"slow"}


@pytest.mark.parametrize("form", ["qdq", "float"])
@pytest.mark.parametrize("name", ["residual", "squeeze_excite"])
def test_every_layer_has_a_time_of_its_own(name: str, form: str) -> None:
    teacher, card, _ = teacher_of(traced(name), CARD)
    trial = module._Trial.of(teacher, card, QConfig.parse("w8a8"), frozenset())
    found = trial.times(trial.file(form))
    assert found.layers.keys() == trial.layers.keys() and all(time > 0 for time in found.layers.values())
    assert bool(found.conversions) == (form == "qdq")
    assert {name for pair in found.between for name in pair} <= found.layers.keys()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Times as a test has them: integers are slow for the layers named here, and a file is as fast as its layers."""
    slow: dict[str, float] = {}

    def times(content: bytes, layers: Any, image: Any) -> Times:
        found = kernel_times(content, layers, image)
        integers = bool(found.conversions)
        found.layers = {n: slow.get(n, 1.0) if integers else 2.0 for n in found.layers}
        return Times(found.layers, dict.fromkeys(found.between, 0.0), [(1, 0.0), (2, 0.0)])

    def measured(files: dict[str, bytes], *_: Any) -> list[Latency]:
        speeds = {FLOAT: 1.0, module.ALL: 0.5}  # the first trial is best
        return [Latency(n, 1, 1, 1.0, 1.0, 1.0, 1, speeds.get(n, 2.0 - i / 10)) for i, n in enumerate(files)]

    monkeypatch.setattr(module, "kernel_times", times)
    monkeypatch.setattr(module, "measure", measured)
    return slow


def test_what_is_slow_computes_in_float(clock: dict[str, float]) -> None:
    graph = traced("residual")
    slow = [n.name for n in teacher_of(graph, CARD)[0].graph.nodes if "conv2d" in str(n.target)][1]
    clock[slow] = 9.0
    found = placed_by_time(graph, CARD, QConfig.parse("w8a8"))
    assert len(found.floats) == 1 and list(found.qconfig.layers.values()) == [STORED]
    assert found.before < found.after and "1 layer computes in float" in found.sentence()


def test_something_is_quantized_in_any_case(clock: dict[str, float]) -> None:
    teacher = teacher_of(traced("residual"), CARD)[0]
    clock |= {n.name: 9.0 + i for i, n in enumerate(teacher.graph.nodes)}
    found = placed_by_time(traced("residual"), CARD, QConfig.parse("w8a8"))
    layers = [n for n in teacher.graph.nodes if "conv2d" in str(n.target) or "linear" in str(n.target)]
    assert len(found.floats) == len(layers) - 1
    assert "layers compute in float" in found.sentence()


def test_in_python_by_an_argument(clock: dict[str, float]) -> None:
    net = zaq.quantize(traced("residual"), images(2), "w8a8", RTN(), optimize="latency")
    assert any("placed by time" in note for note in net.report["notes"])
    with pytest.raises(BitsError, match=r"optimize: unknown aim 'latncy'.*latency"):
        zaq.quantize(traced("residual"), images(2), "w8a8", RTN(), optimize="latncy")


@pytest.mark.parametrize("bits", [QConfig.parse("w4.0a4"), QConfig.parse("w8a8", target="tensorrt")])
def test_what_cannot_be_timed_is_refused(bits: QConfig) -> None:
    with pytest.raises(BitsError, match="--optimize latency: layers are timed in onnxruntime"):
        placed_by_time(traced("residual"), CARD, bits)
