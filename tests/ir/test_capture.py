"""Tracing: the graph computes what the model computes, and refusals name the line."""

import copy

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, build, images

from zaq.errors import SourceError, TraceError
from zaq.ir.capture import from_exported, trace
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


OTHERS = [torch.float16, torch.bfloat16, torch.float64]


class Cast(nn.Module):
    """A net with casts of its own, a constant that is no parameter, and a part in another precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.net, self.last = dtype, build("residual"), nn.Linear(5, 4).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.tensor([0.5, 1.0, 1.5], dtype=self.dtype).view(1, 3, 1, 1)
        x = self.net((x + shift).to(self.net.head[2].weight.dtype))
        return self.last(x.to(self.dtype)) * torch.ones(4, dtype=self.dtype)


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("exported", [False, True])
def test_other_precisions_become_float32(dtype: torch.dtype, exported: bool) -> None:
    """Of a whole net, of one that casts within, and of one of which only a part is in that precision."""
    x = images(3)
    for model in (build("residual").to(dtype), Cast(dtype).to(dtype), Cast(dtype)):
        mine = x.to(next(model.parameters()).dtype)
        dynamic = ({0: torch.export.Dim.AUTO},)
        made = torch.export.export(model.eval(), (mine,), dynamic_shapes=dynamic) if exported else None
        graph = trace(model, x) if made is None else from_exported(made)
        assert {v.dtype for v in graph.state_dict().values() if v.is_floating_point()} == {torch.float32}
        assert {v.dtype for v in model.state_dict().values() if v.is_floating_point()} >= {dtype}  # the user's own
        assert input_node(graph).meta["val"].dtype is torch.float32
        expected = copy.deepcopy(model).double()
        if isinstance(expected, Cast):
            expected.dtype = torch.float64
        torch.testing.assert_close(graph(x), expected(x.double()).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.zeros(5), torch.zeros(2, 5), torch.zeros(2, 1, 1, 1, 3, 5)])
def test_what_is_no_image_is_refused(x: Tensor) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU()).eval()
    with pytest.raises(
        TraceError, match=r"must take images \(N, C, H, W\).*'example_input' is float32 of the shape \("
    ):
        trace(net, x)
    if x.dim() > 1:
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        with pytest.raises(TraceError, match=r"'input_1' is float32 of the shape \(N, .*5\)"):
            from_exported(program)


def test_numbers_of_words_are_refused() -> None:
    with pytest.raises(TraceError, match="is int64"):
        trace(nn.Embedding(10, 4), torch.zeros(2, 3, 4, 4, dtype=torch.long))


def test_a_graph_that_does_not_run_is_not_said_to_have_a_fixed_batch() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.cholesky(x)  # of zeros there is none

    with pytest.raises(TraceError, match=r"does not run on 2 images of zeros: linalg\.cholesky"):
        trace(Net(), images(2))


def test_the_batch_that_is_fixed_is_named() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(5, 3 * 16 * 16)

    with pytest.raises(TraceError, match="batch of input 'x' is fixed to 5"):
        trace(Net(), images(5))


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
