"""Small ONNX files of every kind that people bring, each read as the network that onnxruntime runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils import _pytree as pytree

import zaq
from zaq.errors import SourceError, UserError
from zaq.export.session import session
from zaq.methods.rtn import RTN
from zaq.sources import Source, load, parity
from zaq.sources.frame import network_of, put_back
from zaq.sources.interface import KINDS as KINDS_OF
from zaq.sources.normal import normalised

pytest.importorskip("onnx2torch")
FLOAT, SIZE = TensorProto.FLOAT, 9
Node, Weights = onnx.NodeProto, dict[str, Any]
op = helper.make_node
RANDOM = np.random.default_rng(0)
CONV = RANDOM.standard_normal((4, 3, 3, 3)).astype(np.float32)
LAST = RANDOM.standard_normal((2, 4, 3, 3)).astype(np.float32)


def saved(
    path: Path,
    nodes: list[Node],
    weights: Weights | None = None,
    opset: int = 13,
    ir: int = 8,
    dims: tuple[Any, ...] = (1, 3, SIZE, SIZE + 1),
    kind: int = FLOAT,
    out: int = FLOAT,
    listed: bool = False,
    shaped: bool = False,
    inputs: tuple[onnx.ValueInfoProto, ...] = (),
    entry: list[Node] | None = None,
    outputs: tuple[str, ...] = ("y",),
) -> Path:
    """A file of x, a convolution to c, what is under test from c to y; `entry`: from x to i, which is convolved."""
    stored = {"w": CONV, "w2": LAST, **(weights or {})}
    first = op("Conv", ["i" if entry else "x", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4)
    image = helper.make_tensor_value_info("x", kind, dims)
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()]
    also = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers] if listed else []
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    for result in results:
        result.type.tensor_type.elem_type = out
        if shaped:
            result.CopyFrom(helper.make_tensor_value_info(result.name, out, ["a", "b", "c", "d"]))
    graph = helper.make_graph(
        [*(entry or []), first, *nodes], "g", [image, *inputs, *also], results, initializer=initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(model, path)
    return path


def expected(path: Path, **feed: Any) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    run = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(run.run(None, feed))


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def require_same(path: Path, source: Source | None = None) -> Source:
    """The graph that is read, against onnxruntime on the file itself."""
    source = source or load(str(path), {"input": (3, SIZE, SIZE + 1)})
    x = pixels(1, *source.card.input)
    with torch.no_grad():
        found = pytree.tree_leaves(source.graph(torch.from_numpy(x)))
    for value, right in zip(found, expected(path, x=x), strict=True):
        np.testing.assert_allclose(value.numpy(), right, rtol=1e-4, atol=1e-4)
    return source


def conv(**said: Any) -> list[Node]:
    return [op("Conv", ["c", "w2"], ["y"], kernel_shape=[3, 3], **said)]


def up(kind: str = "ConvTranspose", **said: Any) -> tuple[list[Node], Weights]:
    return [op(kind, ["c", "up"], ["y"], strides=[2, 2], **said)], {"up": LAST.transpose(1, 0, 2, 3).copy()}


def pool(kind: str, kernel: int, stride: int, **said: Any) -> list[Node]:
    return [op(kind, ["c"], ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2, **said)]


def resize(scales: list[float], opset: int = 13, **said: Any) -> tuple[list[Node], Weights]:
    return [op("Resize", ["c", "", "s"], ["y"], **said)], {"s": np.array([1, 1, *scales], np.float32)}


GRID = RANDOM.uniform(-1.2, 1.2, (1, 5, 6, 2)).astype(np.float32)
KINDS: dict[str, Any] = {
    **{f"{a} {s}": conv(auto_pad=a, strides=[s, s]) for a in ("SAME_UPPER", "SAME_LOWER", "VALID") for s in (1, 2)},
    "conv pads": conv(pads=[0, 1, 2, 0], strides=[2, 1]),
    "transposed pads": up(pads=[0, 0, 1, 1]),
    "transposed pads before": up(pads=[2, 1, 0, 1], output_padding=[1, 1]),
    "transposed same": up(auto_pad="SAME_UPPER"),
    "transposed to a shape": up(output_shape=[18, 20]),
    "max pads behind": pool("MaxPool", 3, 2, pads=[0, 0, 1, 1]),
    "max pads before": pool("MaxPool", 3, 2, pads=[1, 1, 0, 0]),
    "max pads unlike": pool("MaxPool", 2, 1, pads=[1, 0, 0, 1]),
    "max pads wide": pool("MaxPool", 3, 1, pads=[2, 0, 0, 2]),
    "max same": pool("MaxPool", 2, 1, auto_pad="SAME_UPPER"),
    "max same lower": pool("MaxPool", 3, 2, auto_pad="SAME_LOWER"),
    "max ceil": pool("MaxPool", 2, 2, ceil_mode=1),
    "max ceil pads": pool("MaxPool", 3, 2, ceil_mode=1, pads=[0, 0, 1, 1]),
    "max dilated": pool("MaxPool", 2, 1, dilations=[2, 2], pads=[1, 1, 1, 1]),
    "average pads": pool("AveragePool", 3, 2, pads=[0, 0, 1, 1]),
    "average pads before": pool("AveragePool", 3, 2, pads=[1, 0, 0, 1]),
    "average pads wide": pool("AveragePool", 3, 1, pads=[2, 0, 0, 2]),
    "average pads counted": pool("AveragePool", 3, 2, pads=[0, 1, 1, 0], count_include_pad=1),
    "average same": pool("AveragePool", 2, 1, auto_pad="SAME_UPPER"),
    **{
        f"nearest {where} {rounding}": resize(
            [2, 1.5], mode="nearest", coordinate_transformation_mode=where, nearest_mode=rounding
        )
        for where in ("asymmetric", "half_pixel", "align_corners")
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    },
    "nearest for tensorflow": resize([2, 2], coordinate_transformation_mode="tf_half_pixel_for_nn"),
    "linear asymmetric": resize([2, 2], mode="linear", coordinate_transformation_mode="asymmetric"),
    "linear asymmetric one way": resize([3, 1], mode="linear", coordinate_transformation_mode="asymmetric"),
    "linear asymmetric smaller": resize([1, 0.5], mode="linear", coordinate_transformation_mode="asymmetric"),
    "linear": resize([2, 2], mode="linear"),
    "blocks DCR": [op("DepthToSpace", ["c"], ["y"], blocksize=2)],
    "blocks CRD": [op("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD")],
    "depth": ([op("Slice", ["c", "b", "e", "a"], ["d"]), op("SpaceToDepth", ["d"], ["y"], blocksize=2)],
              {"b": np.array([0, 0]), "e": np.array([8, 8]), "a": np.array([2, 3])}),
    "global max": [op("GlobalMaxPool", ["c"], ["y"])],
    "tile": ([op("Tile", ["c", "r"], ["y"])], {"r": np.array([1, 2, 1, 3])}),
    "sums": ([op("CumSum", ["c", "a"], ["y"])], {"a": np.array(2)}),
    "sums of others": ([op("CumSum", ["c", "a"], ["y"], exclusive=1, reverse=1)], {"a": np.array([-1])}),
    "grid": ([op("GridSample", ["c", "grid"], ["y"], padding_mode="border")], {"grid": GRID}, {"opset": 16}),
    "grid aligned": ([op("GridSample", ["c", "grid"], ["y"], align_corners=1, mode="nearest")], {"grid": GRID},
                     {"opset": 16}),
    "hard sigmoid": [op("HardSigmoid", ["c"], ["y"], alpha=0.2, beta=0.5)],
    "identities": [op("Identity", ["c"], ["d"]), op("Identity", ["d"], ["e"]), op("Relu", ["e"], ["f"]),
                   op("Identity", ["f"], ["y"])],
    "dropout": ([op("Dropout", ["c"], ["d"]), op("Relu", ["d"], ["y"])], {}, {"opset": 11}),
    "constants": ([op("Constant", [], ["k"], value=numpy_helper.from_array(LAST, "k")),
                   op("Conv", ["c", "k"], ["d"]), op("Constant", [], ["n"], value_float=2.0),
                   op("Mul", ["d", "n"], ["y"])], {}),
    "unused": ([op("Relu", ["c"], ["y"])], {"nobody": np.zeros(4, np.float32)}),
    "old": ([op("Relu", ["c"], ["y"])], {}, {"ir": 3, "opset": 8, "listed": True}),
    "opset 7": ([op("BatchNormalization", ["c", "g", "b", "m", "v"], ["d"]), op("Dropout", ["d"], ["y"], ratio=0.5)],
                {k: np.array([1, 2, 3, 4], np.float32) for k in "gbmv"}, {"ir": 3, "opset": 7, "listed": True}),
    "upsample 9": ([op("Upsample", ["c", "s"], ["y"], mode="nearest")], {"s": np.array([1, 1, 2, 2], np.float32)},
                   {"opset": 9}),
    "upsample 7": ([op("Upsample", ["c"], ["y"], mode="nearest", scales=[1.0, 1.0, 2.0, 3.0])], {}, {"opset": 7}),
    "linear upsample 9": ([op("Upsample", ["c", "s"], ["y"], mode="linear")],
                          {"s": np.array([1, 1, 2, 2], np.float32)}, {"opset": 9}),
    "resize 10": ([op("Resize", ["c", "s"], ["y"], mode="nearest")], {"s": np.array([1, 1, 1.5, 3], np.float32)},
                  {"opset": 10}),
    "sizes of -1": ([op("Relu", ["c"], ["y"])], {}, {"dims": (-1, 3, -1, -1)}),
    "sizes of 0": ([op("Relu", ["c"], ["y"])], {}, {"dims": (0, 3, 0, 0)}),
    "half inside": ([op("Cast", ["c"], ["h"], to=TensorProto.FLOAT16), op("Conv", ["h", "half"], ["d"]),
                     op("Cast", ["d"], ["y"], to=FLOAT)], {"half": (LAST / 64).astype(np.float16)}),
}  # fmt: skip


@pytest.mark.slow  # test_reported_onnx.py reads one of most kinds
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_read_as_it_runs(name: str, tmp_path: Path) -> None:
    nodes, weights, more = [*(KINDS[name] if isinstance(KINDS[name], tuple) else (KINDS[name],)), {}, {}][:3]
    path = saved(tmp_path / "net.onnx", nodes, weights, **more)
    if name in ("half inside", "sizes of 0"):  # another network, by a half's rounding; one that onnxruntime never runs
        source = load(str(path), {"input": (3, SIZE, SIZE + 1)})
        assert source.graph(torch.zeros(2, 3, SIZE, SIZE + 1)).dtype is torch.float32
        return
    require_same(path)


def test_a_resize_of_opset_11_without_its_region(tmp_path: Path) -> None:
    """onnxruntime refuses the empty name that exporters leave there; the reader gives it one."""
    nodes, weights = resize([2, 2], mode="linear", coordinate_transformation_mode="asymmetric")
    path = saved(tmp_path / "net.onnx", nodes, weights, opset=11)
    assert load(str(path)).graph(torch.zeros(2, 3, SIZE, SIZE + 1)).shape == (2, 4, 2 * SIZE, 2 * SIZE + 2)


def test_pads_of_a_maximum_stay_finite(tmp_path: Path) -> None:
    """-inf in a tensor that is quantized leaves nothing else of it."""
    for name in [n for n in KINDS if n.startswith("max")]:
        graph = load(str(saved(tmp_path / "net.onnx", KINDS[name]))).graph
        assert not any(a in (-torch.inf, float("-inf")) for n in graph.graph.nodes for a in n.args if a is not None)


IMAGE = (1, 3, SIZE, SIZE + 1)
ENDS: dict[str, dict[str, Any]] = {
    "nhwc": {"nodes": conv(), "dims": (1, SIZE, SIZE + 1, 3),
             "entry": [op("Transpose", ["x"], ["i"], perm=[0, 3, 1, 2])]},
    "nhwc of open sizes": {"nodes": conv(), "dims": ("n", "h", "w", 3),
                           "entry": [op("Transpose", ["x"], ["i"], perm=[0, 3, 1, 2])]},
    "nhwc behind a mean": {"nodes": conv(), "dims": (1, SIZE, SIZE + 1, 3), "weights": {"m": np.float32([1, 2, 3])},
                           "entry": [op("Sub", ["x", "m"], ["d"]), op("Transpose", ["d"], ["i"], perm=[0, 3, 1, 2])]},
    "bytes": {"nodes": conv(), "kind": TensorProto.UINT8, "entry": [op("Cast", ["x"], ["i"], to=FLOAT)]},
    "bytes, nhwc": {"nodes": conv(), "kind": TensorProto.UINT8, "dims": (1, SIZE, SIZE + 1, 3),
                    "entry": [op("Cast", ["x"], ["d"], to=FLOAT), op("Transpose", ["d"], ["i"], perm=[0, 3, 1, 2])]},
    "classes": {"nodes": [op("ArgMax", ["c"], ["y"], axis=1)], "out": TensorProto.INT64},
    "mask": {"nodes": [op("Sigmoid", ["c"], ["d"]), op("Greater", ["d", "half"], ["y"])],
             "weights": {"half": np.float32(0.5)}, "out": TensorProto.BOOL},
    "best": {"nodes": [op("Reshape", ["c", "s"], ["d"]), op("TopK", ["d", "k"], ["y", "z"])],
             "weights": {"s": np.array([1, -1]), "k": np.array([3])}},
    "boxes": {"nodes": [op("Reshape", ["c", "s"], ["b"]), op("Reshape", ["c", "t"], ["p"]),
                        op("NonMaxSuppression", ["b", "p", "k", "iou"], ["y"])], "out": TensorProto.INT64,
              "weights": {"s": np.array([1, -1, 4]), "t": np.array([1, 4, -1]), "k": np.array([3]),
                          "iou": np.float32([0.5])}},
    "scale": {"nodes": [op("Div", ["c", "factor"], ["y"])],
              "inputs": (helper.make_tensor_value_info("factor", FLOAT, [1]),)},
    "two ways": {"nodes": [op("ArgMax", ["c"], ["y"], axis=1), op("Relu", ["c"], ["z"])], "outputs": ("y", "z"),
                 "out": TensorProto.INT64},
}  # fmt: skip


def with_kinds(path: Path, name: str) -> Path:
    about = dict(ENDS[name])
    saved(path, about.pop("nodes"), **about)
    if name == "two ways":
        model = onnx.load(path)
        model.graph.output[1].type.tensor_type.elem_type = FLOAT
        onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", ENDS)
def test_ends_are_cut_off_and_put_back(name: str, tmp_path: Path) -> None:
    """What is put around a float form of the network again is the file: same inputs, same outputs, same values."""
    path = with_kinds(tmp_path / "net.onnx", name)
    source = load(str(path), {"input": (3, SIZE, SIZE + 1)} if "open" in name else None)
    assert source.frame is not None and source.card.input == (3, SIZE, SIZE + 1)
    ends = onnx.load_model_from_string(source.frame).graph
    found = {n.op_type for n in ends.node}
    assert not found & {"Conv", "Relu", "Sigmoid"}, found
    inner = inside(source)
    whole = put_back(inner, source.frame)
    theirs, ours = onnx.load(path).graph, onnx.load_model_from_string(whole).graph
    assert [i.name for i in ours.input] == [i.name for i in theirs.input]
    assert [o.name for o in ours.output] == [o.name for o in theirs.output]
    kinds = [i.type.tensor_type.elem_type for i in ours.input]
    assert kinds == [i.type.tensor_type.elem_type for i in theirs.input]
    (tmp_path / "whole.onnx").write_bytes(whole)
    image = pixels(*(d.dim_value or {1: SIZE, 2: SIZE + 1}.get(i, 1) for i, d in enumerate(dims_of(theirs))))
    x = (image * 20 + 100).clip(0, 255).astype(np.uint8) if kinds[0] == TensorProto.UINT8 else image
    feed = {"x": x} | {i.name: np.full(1, 2.0, np.float32) for i in theirs.input[1:]}
    for value, right in zip(expected(tmp_path / "whole.onnx", **feed), expected(path, **feed), strict=True):
        assert value.dtype == right.dtype
        np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-3)
    again = onnx.load_model_from_string(network_of(whole)).graph
    assert [n.op_type for n in again.node] == [n.op_type for n in onnx.load_model_from_string(inner).graph.node]
    assert session(whole).get_inputs()[0].shape[1:] == [3, SIZE, SIZE + 1] or "open" in name


def dims_of(graph: onnx.GraphProto) -> list[Any]:
    return list(graph.input[0].type.tensor_type.shape.dim)


def inside(source: Source) -> bytes:
    """A network that a frame goes around, as torch exports it from the graph that was read."""
    from zaq.export.onnx import in_form, translate
    from zaq.export.program import program_of

    return in_form(translate(program_of(source.graph)), {}, "float")


def test_bytes_are_pixels_of_0_to_255(tmp_path: Path) -> None:
    source = load(str(with_kinds(tmp_path / "net.onnx", "bytes")))
    low, high = source.card.bounds()
    assert low.flatten().tolist() == pytest.approx([0] * 3) and high.flatten().tolist() == pytest.approx([255] * 3)


def test_a_guess_is_said(tmp_path: Path) -> None:
    (note,) = load(str(with_kinds(tmp_path / "net.onnx", "nhwc behind a mean"))).notes
    assert "'x' of the sizes [1, 9, 10, 3] counts as NHWC" in note
    assert not load(str(with_kinds(tmp_path / "net.onnx", "nhwc"))).notes


MEAN = [op("Sub", ["x", "m"], ["d"]), op("Transpose", ["d"], ["i"], perm=[0, 3, 1, 2])]


@pytest.mark.parametrize("dims", [(1, 3, SIZE, 3), ("n", "h", "w", "c"), (1, SIZE, 4, 3)])
def test_a_layout_that_no_graph_shows_is_said(dims: tuple[Any, ...], tmp_path: Path) -> None:
    """Sizes tell the layout of the last alone, and nothing reads it at once."""
    weights = {"m": np.float32([1, 2, 3])}
    path = saved(tmp_path / "net.onnx", [op("Relu", ["c"], ["y"])], weights, dims=dims, entry=MEAN)
    sizes = (5, 6, 3) if "n" in dims else dims[1:]
    shape = (3, *sizes[:2])
    source = load(str(path), {"input": shape}, layout="NHWC")
    assert source.card.input == shape and source.frame is not None and not source.notes
    (tmp_path / "whole.onnx").write_bytes(put_back(inside(source), source.frame))
    x = pixels(1, *sizes)
    np.testing.assert_allclose(*(expected(p, x=x)[0] for p in (tmp_path / "whole.onnx", path)), rtol=1e-4, atol=1e-4)
    if dims == (1, SIZE, 4, 3):
        assert load(str(path)).card.input == shape
        assert load(str(path), layout="NCHW").card.input == dims[1:]  # as whoever says so has it
    elif "n" not in dims:
        assert load(str(path)).card.input == dims[1:]


def test_a_layout_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    path = str(with_kinds(tmp_path / "net.onnx", "nhwc"))
    assert load(path, layout="NHWC").card == load(path).card
    with pytest.raises(SourceError, match=r"--layout NCHW: its input 'x' is NHWC, for what reads it turns it"):
        load(path, layout="NCHW")
    path = str(saved(tmp_path / "net.onnx", conv()))
    with pytest.raises(SourceError, match=r"--layout NHWC: its input 'x' is NCHW, for a convolution reads it as it is"):
        load(path, layout="NHWC")
    with pytest.raises(SourceError, match=r"unknown layout 'NHWD'.*NHWC"):
        load(path, layout="NHWD")


SECOND = (helper.make_tensor_value_info("factor", FLOAT, [1, 2]),)
BEFORE = [op("ReduceSum", ["factor"], ["f"], keepdims=0), op("Mul", ["c", "f"], ["d"]), op("Conv", ["d", "w2"], ["y"])]


def test_an_input_that_is_the_same_in_every_use_is_bound(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", BEFORE, inputs=SECOND)
    with pytest.raises(SourceError, match=r"its input factor is read before its last layer.*--bind factor=1,1"):
        load(str(path))
    source = load(str(path), bind={"factor": (1.0, 2.0)})
    x = pixels(*IMAGE)
    right = expected(path, x=x, factor=np.float32([[1, 2]]))[0]
    np.testing.assert_allclose(source.graph(torch.from_numpy(x)).detach(), right, rtol=1e-4, atol=1e-4)
    assert "'factor' is bound" in source.notes[0]
    with pytest.raises(SourceError, match="--bind factor: 3 numbers, where it takes 2"):
        load(str(path), bind={"factor": (1.0, 2.0, 3.0)})
    with pytest.raises(SourceError, match="--bind scale: there is no such input; it takes: x, factor"):
        load(str(path), bind={"scale": (1.0,)})


def test_numbers_to_bind_are_numbers(tmp_path: Path) -> None:
    from conftest import zaq_here

    done = zaq_here("inspect", saved(tmp_path / "net.onnx", BEFORE, inputs=SECOND), "--bind", "factor=a")
    assert done.exit_code == 2 and "--bind factor=a: a name and numbers are expected" in done.stderr
    done = zaq_here("inspect", "zoo:resnet20_cifar10", "--bind", "factor=1")
    assert done.exit_code == 2 and "--bind means nothing to this kind of source" in done.stderr


def test_another_network_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that is off by a thousandth of what the network gives; two right ones differ by a millionth."""
    path = saved(tmp_path / "net.onnx", conv())
    right = load(str(path))
    weight = next(p for p in right.graph.parameters() if p.dim() == 4)
    found = parity.Cut(normalised(onnx.load(path)), None, "x", False, False, ())
    parity.require_same(path, [path.read_bytes()], found, {}, right)
    with torch.no_grad():
        weight *= 1.001
    with pytest.raises(SourceError, match=r"reads another network out of it \(outputs differ by 0\.0?\d+ %"):
        parity.require_same(path, [path.read_bytes()], found, {}, right)


SAID: dict[str, tuple[Callable[[Path], Path], str]] = {
    "rank": (lambda p: saved(p, conv(), dims=(1, 3, 9), shaped=True), "has 3 dimensions"),
    "bytes": (lambda p: saved(p, conv(), kind=TensorProto.INT32, shaped=True), "is int32; a batch of images in"),
    "size": (lambda p: saved(p, conv(), dims=(1, 3, 16, "w")), "is fixed to 3,16,\\? \\(C,H,W\\); card or flags"),
    "nothing": (lambda p: saved(p, [op("Shape", ["c"], ["y"])], out=TensorProto.INT64), "nothing to quantize"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    make, sentence = SAID[name]
    with pytest.raises(SourceError, match=sentence):
        load(str(make(tmp_path / "net.onnx")), {"input": (3, SIZE, SIZE + 1)})


def test_a_frame_takes_no_more_room_than_a_network(tmp_path: Path) -> None:
    """What is cut off is run by onnxruntime alone, which makes whatever it is asked for."""
    nodes = [
        op("ArgMax", ["c"], ["m"], axis=1),
        op("ConstantOfShape", ["s"], ["z"], value=numpy_helper.from_array(np.zeros(1, np.int64))),
        op("ReduceSum", ["z"], ["r"], keepdims=0),
        op("Add", ["m", "r"], ["y"]),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"s": np.array([600000, 600000])}, out=TensorProto.INT64)
    with pytest.raises(SourceError, match=r"'z' has 3.6e\+11 elements"):
        load(str(path))


def test_a_run_keeps_the_frame_of_its_source(tmp_path: Path) -> None:
    """The file takes and gives what its source did, in every form; its network is verified inside."""
    from conftest import zaq_here

    nodes = [op("ArgMax", ["c"], ["y"], axis=1)]
    entry = [op("Transpose", ["x"], ["i"], perm=[0, 3, 1, 2])]
    path = saved(tmp_path / "net.onnx", nodes, dims=(1, SIZE, SIZE + 1, 3), entry=entry, out=TensorProto.INT64)
    out = tmp_path / "out"
    done = zaq_here("quantize", path, "--bits", "w8a8", "--method", "rtn", "-o", out)
    assert done.exit_code == 0, done.stderr
    done = zaq_here("export", out, "--format", "qoperator")
    assert done.exit_code == 0, done.stderr
    done = zaq_here("verify", out)
    assert done.exit_code == 0 and "QLinearConv" in done.output, done.stderr
    x = pixels(1, SIZE, SIZE + 1, 3)
    (right,) = expected(path, x=x)
    for name in ("model.onnx", "model.qoperator.onnx"):
        (found,) = expected(out / name, x=x)
        assert found.dtype == right.dtype and found.shape == right.shape and (found == right).mean() > 0.9
    done = zaq_here("export", out, "--format", "ort")  # whose network is compared alone
    assert done.exit_code == 0 and "256 samples: " in done.output, done.stderr
    run = ort.InferenceSession(str(out / "model.ort"), providers=["CPUExecutionProvider"])
    assert [i.name for i in run.get_inputs()] == ["x"] and (run.run(None, {"x": x})[0] == right).mean() > 0.9
    (out / "frame.onnx").write_bytes(b"junk")
    done = zaq_here("verify", out)
    assert done.exit_code == 2 and "was not made from the frame.onnx beside it" in done.stderr


@pytest.mark.parametrize("form", ["qdq", "ort"])
@pytest.mark.parametrize("name", ["boxes", "scale", "bytes, nhwc"])
def test_a_loaded_model_is_quantized_in_python(name: str, form: str, tmp_path: Path) -> None:
    """Names, types, what stands around it and its other inputs are kept, in a form that nothing can take apart too."""
    path = with_kinds(tmp_path / "net.onnx", name)
    quantized = zaq.quantize(zaq.load(str(path)), bits="w8a8", method=RTN())
    made = tmp_path / ("out.ort" if form == "ort" else "out.onnx")
    quantized.export(made, form)
    ours, theirs = (ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (made, path))
    for ends in ("get_inputs", "get_outputs"):
        found, wanted = ([(e.name, e.type) for e in getattr(run, ends)()] for run in (ours, theirs))
        assert found == wanted
    (image, *more), random = theirs.get_inputs(), np.random.default_rng(1)
    x = random.integers(0, 256, image.shape) if "bytes" in name else random.standard_normal(image.shape).clip(-3, 3)
    feed = {image.name: x.astype(KINDS_OF[image.type])} | {i.name: np.full(1, 2.0, np.float32) for i in more}
    (value,), (right,) = ours.run(None, feed), theirs.run(None, feed)
    assert value.dtype == right.dtype and value.shape == right.shape
    assert np.abs(value.astype(float) - right).max() <= 0.05 * np.abs(right).max()


def test_a_loaded_model_has_its_example_and_a_module_has_not(tmp_path: Path) -> None:
    source = zaq.load(str(with_kinds(tmp_path / "net.onnx", "scale")))
    with pytest.raises(UserError, match=r"quantize: net was loaded, and has its example_input, card and dynamic from"):
        zaq.quantize(source, torch.zeros(1, 3, SIZE, SIZE + 1))
    with pytest.raises(UserError, match="quantize: a module needs an example_input"):
        zaq.quantize(torch.nn.Conv2d(3, 4, 3))


OTHER_FORMS = ["{", '{"input": "x"}', '{"input": [1], "outputs": []}', '{"input": ["a", "b"], "outputs": []}']


@pytest.mark.parametrize("text", OTHER_FORMS)
def test_a_frame_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    model = onnx.load(saved(tmp_path / "net.onnx", conv()))
    helper.set_model_props(model, {"zaq.frame": text})
    with pytest.raises(SourceError, match="frame"):
        network_of(model.SerializeToString())
