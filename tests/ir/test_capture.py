"""Tracing: the graph computes what the model computes, and refusals name the line."""

import copy

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, build, images

from zaq.errors import SourceError, TraceError
from zaq.ir.capture import trace
from zaq.ir.nodes import input_node, shape_of
from zaq.ir.ops import BATCH_NORMS
from zaq.ir.taps import taps, with_taps


@pytest.mark.parametrize("name", ZOO)
def test_graph_computes_the_model(name: str) -> None:
    model, x = build(name), images(3)
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, x[:1])
    torch.testing.assert_close(graph(x), model(x))
    torch.testing.assert_close(graph(x[:1]), model(x[:1]))  # the batch is dynamic
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert {k for k in graph.state_dict() if not k.endswith("_constant")} <= set(before)  # the user's own keys


@pytest.mark.parametrize("name", ZOO)
def test_graph_is_functional(name: str) -> None:
    targets = [str(n.target) for n in trace(build(name), images(1)).graph.nodes if n.op == "call_function"]
    assert targets and not [t for t in targets if t.startswith("aten") and t.split(".")[1].endswith("_")]


def test_batch_norm_has_one_spelling() -> None:
    module, functional = (trace(build(n), images(1)) for n in ("residual", "functional_batch_norm"))
    spellings = {n.target for g in (module, functional) for n in g.graph.nodes if "batch_norm" in str(n.target)}
    assert spellings <= BATCH_NORMS and len(spellings) == 1


def test_keyword_input() -> None:
    class Net(nn.Module):
        def forward(self, *, picture: Tensor) -> Tensor:
            return picture.mean((2, 3))

    x = images(2)
    torch.testing.assert_close(trace(Net(), {"picture": x})(x), x.mean((2, 3)))


def test_structured_outputs_become_a_tuple() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x + 1, "b": x * 2}

    x = images(2)
    a, b = trace(Net(), x)(x)
    torch.testing.assert_close((a, b), (x + 1, x * 2))


def test_wrappers_come_off() -> None:
    model = build("residual")
    torch.testing.assert_close(trace(nn.DataParallel(model), images(1))(images()), model(images()))


def test_taps_are_the_last_feature_map_of_each_resolution() -> None:
    graph = trace(build("residual"), images(1))
    shapes = {n.name: shape_of(n) for n in graph.graph.nodes}
    assert [shapes[t] for t in taps(graph)] == [(8, 16, 16), (16, 8, 8)]
    outputs, features = with_taps(graph, taps(graph))(images(2))
    torch.testing.assert_close(outputs[0], graph(images(2)))
    assert [f.shape for f in features] == [(2, 8, 16, 16), (2, 16, 8, 8)]


def test_input_shape_is_known() -> None:
    assert shape_of(input_node(trace(build("pools"), images(1)))) == (3, 16, 16)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_a_branch_on_data_is_refused_with_its_line() -> None:
    with pytest.raises(
        TraceError, match=r"(?s)control flow depends on the data.*test_capture\.py:\d+: if x\.sum\(\) > 0"
    ):
        trace(Branches(), images(1))


def test_torchscript_is_refused_with_the_way_out() -> None:
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.trace(build("pools"), images(1))
    with pytest.raises(TraceError, match=r"torch\.export\.save"):
        trace(scripted, images(1))


def test_a_fixed_batch_is_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3 * 16 * 16)

    with pytest.raises(TraceError, match="batch of input 'x' is fixed to 2"):
        trace(Net(), images(2))


def test_two_inputs_are_refused() -> None:
    class Net(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    with pytest.raises(TraceError, match="must take one tensor"):
        trace(Net(), {"a": images(2), "b": images(2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(value: float) -> None:
    model = build("residual")
    with torch.no_grad():
        model.get_parameter("down.0.weight")[0, 0, 0, 0] = value
    with pytest.raises(SourceError, match=r"down\.0\.weight holds 1 NaN or infinite"):
        trace(model, images(1))


class Grown(nn.Module):
    """Two bytes of a file, and a tensor of any size."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((1, 2, 3))[:, None, None] + torch.ones(self.side, self.side)).sum((1, 2))


def test_a_tensor_that_no_image_needs_is_not_made() -> None:
    with pytest.raises(TraceError, match=r"makes [\d.]+e\+11 numbers of an image in one tensor; at most"):
        trace(Grown(600_000), images(2))
    assert trace(Grown(60), images(2))(images(3)).shape == (3,)
