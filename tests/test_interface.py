"""From source to file: what is around a network is kept, and what was open stays open."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import zaq_here
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sized import Classifier, Pyramid, Reader, ToGrid

import zaq
from zaq.errors import TraceError
from zaq.ir.capture import quiet, trace
from zaq.ir.nodes import open_sizes
from zaq.ir.sizes import open_up
from zaq.methods.rtn import RTN as RTNMethod
from zaq.sources import load
from zaq.stages.blocks import between, blocks

pytest.importorskip("onnx2torch")
Image = NDArray[np.float32]
RTN = ("--bits", "w8a8", "--method", "rtn")


def random(*shape: int) -> Image:
    """Within the three deviations that an input of unknown normalisation is taken to span."""
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32).clip(-3, 3)


def detector(path: Path, sizes: tuple[int | str, ...], kind: int = TensorProto.FLOAT) -> Path:
    """Two convolutions, upsampled by a factor, and rows made of what is left, as detectors end."""
    weights = {"w": random(8, 3, 3, 3) / 5, "v": random(6, 8, 3, 3) / 9, "sizes": np.array([0, 6, -1])}
    weights |= {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Resize", ["b", "roi", "scales"], ["c"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        helper.make_node("Conv", ["c", "v"], ["d"], pads=[1] * 4),
        helper.make_node("Reshape", ["d", "sizes"], ["boxes"]),
    ]  # fmt: skip
    start = helper.make_tensor_value_info("images", kind, sizes, doc_string="0 to 1")
    end = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [sizes[0], 6, "anchors"])
    stored = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "detector", [start], [end], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, doc_string="finds")
    helper.set_model_props(model, {"stride": "2", "names": "{0: 'cat'}"})
    onnx.save(model, path)
    return path


def require_alike(one: Path, other: Path, x: Image) -> None:
    """Two files, fed by the first's names alone."""
    sessions = [onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (one, other)]
    names = [o.name for o in sessions[0].get_outputs()]
    wanted, found = (s.run(names, {sessions[0].get_inputs()[0].name: x})[0] for s in sessions)
    assert wanted.shape == found.shape and np.square(wanted - found).mean() < 1e-3 * np.square(wanted).mean()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("opened")
    path = detector(folder / "net.onnx", ("N", 3, "rows", "columns"))
    done = zaq_here("quantize", path, *RTN, "--input-shape", "3,16,16", "-o", folder / "out")
    assert done.exit_code == 0, done.stderr
    assert "the height and width stay open in the file, which is checked at 25x33 and 29x23 too" in done.output
    assert "at 25x33: 16 samples" in done.output
    yield path, folder / "out"


def test_an_onnx_file_of_open_sizes(opened: tuple[Path, Path]) -> None:
    path, out = opened
    run = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for ends in ("get_inputs", "get_outputs"):
        (ours,), (wanted,) = getattr(run, ends)(), getattr(theirs, ends)()
        assert (ours.name, ours.type, ours.shape) == (wanted.name, wanted.type, wanted.shape)
    about = run.get_modelmeta()
    assert {"stride": "2", "names": "{0: 'cat'}"}.items() <= about.custom_metadata_map.items()
    assert about.description == "finds" and "zaq.bits" in about.custom_metadata_map
    for size in ((16, 16), (18, 40), (21, 33)):
        require_alike(path, out / "model.onnx", random(2, 3, *size))


@pytest.mark.slow
def test_other_sizes_are_verified_again(opened: tuple[Path, Path]) -> None:
    done = zaq_here("verify", opened[1], "--json")
    assert done.exit_code == 0, done.stderr
    others = json.loads(done.stdout)["others"]
    for size in ("25x33", "29x23"):
        assert others[f"model.onnx at {size}"]["share_worse"] < 0.01
    for form in ("qoperator", "float"):
        assert zaq_here("export", opened[1], "--format", form, "--overwrite").exit_code == 0
        require_alike(opened[0], opened[1] / f"model.{form}.onnx", random(1, 3, 22, 34))
    assert zaq_here("profile", opened[1]).exit_code == 0


def test_another_size_than_a_files_is_refused(tmp_path: Path) -> None:
    path = detector(tmp_path / "net.onnx", (1, 3, 16, 16))
    done = zaq_here("quantize", path, *RTN, "--input-shape", "3,32,32", "-o", tmp_path / "out")
    assert done.exit_code == 2 and not (tmp_path / "out").exists()
    assert "'images' is fixed to 3,16,16 (C,H,W); card or flags say 3,32,32" in done.stderr
    done = zaq_here("quantize", path, *RTN, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    run = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert run.get_inputs()[0].shape == [1, 3, 16, 16] and run.get_outputs()[0].shape[:2] == [1, 6]
    require_alike(path, tmp_path / "out" / "model.onnx", random(1, 3, 16, 16))
    done = zaq_here("quantize", path, "--dynamic", "H,W", "--dry-run")
    assert done.exit_code == 2 and "--dynamic means nothing to this kind of source" in done.stderr


def program(net: torch.nn.Module, path: Path, **shapes: object) -> Path:
    dims = {0: torch.export.Dim.AUTO, **{{"h": 2, "w": 3}[k]: v for k, v in shapes.items()}}
    with quiet():
        exported = torch.export.export(net.eval(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=(dims,))
        torch.export.save(exported, path)
    return path


def test_a_program_of_open_sizes(tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    source = load(str(program(Pyramid(), tmp_path / "net.pt2", h=auto, w=auto)))
    assert source.card.input == (3, 16, 16) and open_sizes(source.graph) == (2, 3) and not source.notes
    source = load(str(tmp_path / "net.pt2"), {"input": (3, 20, 24)})
    assert source.card.input == (3, 20, 24) and open_sizes(source.graph) == (2, 3)
    least = torch.export.Dim("rows", min=8, max=64)
    source = load(str(program(Classifier(), tmp_path / "some.pt2", h=least)))
    assert open_sizes(source.graph) == (2,)  # at sizes that the program says it takes
    done = zaq_here("quantize", tmp_path / "some.pt2", *RTN, "-o", tmp_path / "out")
    assert done.exit_code == 0 and "the height stays open in the file, which is checked at 25x16" in done.output


def test_a_program_of_sizes_made_of_others(tmp_path: Path) -> None:
    """`32 * h` is a size that stays open where nothing depends on it, as any other; two that are tied are fixed."""
    named = torch.export.Dim
    path = program(Pyramid(), tmp_path / "net.pt2", h=8 * named("h"), w=4 * named("w"))
    source = load(str(path), {"input": (3, 24, 20)})
    assert open_sizes(source.graph) == (2, 3) and not source.notes
    x = torch.randn(3, 3, 40, 28)
    with quiet():
        wanted = torch.export.load(path).module()(x)
    torch.testing.assert_close(source.graph(x), wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(TraceError, match=r"does not run at \(3, 25, 20\): .* of the form 8\*"):
        load(str(path), {"input": (3, 25, 20)})
    source = load(str(program(ToGrid(), tmp_path / "grid.pt2", h=8 * named("h"))))
    assert open_sizes(source.graph) == () and "the height is fixed at 16, though the source leaves" in source.notes[0]
    with quiet():
        batch = ({0: 2 * named("pairs")},)
        pairs = torch.export.export(Classifier().eval(), (torch.zeros(4, 3, 16, 16),), dynamic_shapes=batch)
        torch.export.save(pairs, tmp_path / "pairs.pt2")
    assert load(str(tmp_path / "pairs.pt2")).graph(torch.zeros(3, 3, 16, 16)).shape == (3, 5)


@pytest.mark.slow
def test_a_program_without_them_and_a_module(tmp_path: Path) -> None:
    path = str(program(Reader(), tmp_path / "net.pt2"))
    assert open_sizes(load(path).graph) == ()
    source = load(path, dynamic=(2, 3))
    assert open_sizes(source.graph) == (3,) and "the height is fixed at 16" in source.notes[0]
    done = zaq_here("quantize", path, *RTN, "--dynamic", "w", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    run = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert run.get_inputs()[0].shape == ["batch", 3, 16, "width"]
    for width in (16, 320, 480):
        assert run.run(None, {"input": random(2, 3, 16, width)})[0].shape == (2, width // 4, 5)
    done = zaq_here("inspect", path, "--dynamic", "H,D")
    assert done.exit_code == 2 and "'D' is none of H and W" in done.stderr


@pytest.mark.slow
def test_in_python(tmp_path: Path) -> None:
    quantized = zaq.quantize(Pyramid(), torch.zeros(1, 3, 16, 16), "w8a8", RTNMethod(), dynamic="H,W")
    quantized.export(tmp_path / "net.onnx")
    run = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert run.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert run.get_outputs()[0].shape == ["batch", 5, "height", "width"]


def test_blocks_of_a_network_of_open_sizes() -> None:
    """A block is learned at the example's size, whatever tensor from before it a size was asked of."""
    net = Pyramid().eval()
    graph, _ = open_up(lambda image: trace(net, torch.zeros(2, *image)), (3, 16, 16), (2, 3))
    values: dict[str, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            values[n.name] = super().run_node(n)
            return values[n.name]

    with torch.no_grad():
        Recorder(graph).run(torch.randn(2, 3, 16, 16))
        found = blocks(graph, values, most=1)
        assert len(found) > 1
        for block in found:
            for made, name in zip(between(graph, block)(values[block.entry]), block.exits, strict=True):
                torch.testing.assert_close(made, values[name])


@pytest.mark.slow
def test_class_names_travel(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from zaq.sources.libraries import timm_model, torchvision_model

    _, known = torchvision_model("squeezenet1_1", {}, True)
    assert len(known["class_names"]) == 1000 and known["class_names"][0] == "tench"
    assert torchvision_model("squeezenet1_1", {"num_classes": 3}, True)[1]["class_names"] == ()
    _, known = timm_model("test_vit.r160_in1k", {}, True)
    assert len(known["class_names"]) == 1000 and known["class_names"][0].startswith("tench")
    assert timm_model("test_vit.r160_in1k", {"num_classes": 3}, True)[1]["class_names"] == ()
    path = detector(tmp_path / "net.onnx", ("N", 3, 16, 16))
    path.with_suffix(".json").write_text(json.dumps({"class_names": ["cat", "dog"]}))
    assert zaq_here("quantize", path, *RTN, "-o", tmp_path / "out").exit_code == 0
    run = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(run.get_modelmeta().custom_metadata_map["zaq.classes"]) == ["cat", "dog"]
