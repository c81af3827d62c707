"""ONNX files as exporters and zaq itself write them; and those that cannot be read, each by a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import zaq_here
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import build, head, images

from zaq.errors import SourceError
from zaq.ir.capture import quiet
from zaq.sources import load

pytest.importorskip("onnx2torch")


def exported(model: nn.Module, path: Path, x: Tensor | None = None, dynamic: bool = True, **options: object) -> Path:
    """Through torch's own exporter."""
    shapes = ({0: torch.export.Dim.AUTO},) if dynamic else None
    kwargs: dict[str, object] = {"dynamic_shapes": shapes, "dynamo": True, "verbose": False, "external_data": False}
    with quiet():
        torch.onnx.export(model, (images(2) if x is None else x,), path, **kwargs | options)  # type: ignore[arg-type]
    return path


def require_same(path: Path, model: nn.Module, x: Tensor | None = None) -> None:
    x = images(3) if x is None else x
    with torch.no_grad():
        torch.testing.assert_close(load(str(path)).graph(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "opset"), [("mean_head", 18), ("pools", 23)])
def test_files_of_the_exporter_are_the_model(name: str, opset: int, tmp_path: Path) -> None:
    require_same(exported(build(name), tmp_path / "net.onnx", opset_version=opset), build(name))


def test_batch_norm_that_is_still_there_is_folded_by_us(tmp_path: Path) -> None:
    """With it the statistics that methods live on; an exporter that optimizes folds it, and the report says what that
    costs.
    """
    with_bn = exported(build("residual"), tmp_path / "whole.onnx", optimize=False)
    done = zaq_here("inspect", with_bn)
    assert "4 batch norms fold" in done.output and "no batch norm folds" not in done.output, done.stderr
    done = zaq_here("inspect", exported(build("residual"), tmp_path / "folded.onnx"))
    assert (
        "0 batch norms fold" in done.output
        and "warning: no batch norm folds into a layer here (ONNX files mostly" in done.output
    )


def test_a_file_quantized_and_its_float_form_read_back(tmp_path: Path) -> None:
    path, out, again = exported(build("residual"), tmp_path / "net.onnx"), tmp_path / "out", tmp_path / "again.onnx"
    done = zaq_here("quantize", path, "--bits", "w8a8", "--method", "rtn", "-o", out)
    assert done.exit_code == 0 and "note: no batch norm folds" in done.output, done.stderr
    assert "no batch norm folds" in (out / "report.html").read_text()
    assert zaq_here("export", out, "--format", "float", "-o", again).exit_code == 0
    require_same(again, build("residual"))
    done = zaq_here("quantize", path, "--bits", "w8a8", "--method", "zeroq", "-o", tmp_path / "third")
    assert done.exit_code == 2 and "zeroq lives on the statistics of batch norms" in done.stderr
    done = zaq_here("inspect", out / "model.onnx")
    assert done.exit_code == 2 and "model.onnx: is quantized already (DequantizeLinear, QuantizeLinear)" in done.stderr


class Many(nn.Module):
    """What onnx2torch reads in no way of its own, or in none that torch.export sees through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mlp = (
            nn.Conv2d(3, 8, 3),
            nn.LayerNorm(8),
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        )
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = F.interpolate(F.pad(x[:, :, 1:-1, 1::2], (0, 1, 0, 0)), scale_factor=2.0)
        a, b = x.split([3, 5], 1)
        x = torch.cat([b, a], 1).amax(3, keepdim=True).sum(3).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head((x + self.mlp(self.norm(x)))[:, 0])


def test_later_operations_and_sizes_from_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Many().eval()
    path = exported(model, tmp_path / "net.onnx", opset_version=21)
    require_same(path, model)
    assert sum("linear" in str(n.target) for n in load(str(path)).graph.graph.nodes if n.op == "call_function") == 3


def test_a_fixed_batch_becomes_any(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5)).eval()
    path = exported(model, tmp_path / "net.onnx", images(1), dynamic=False)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    require_same(path, model)


def test_an_open_size_is_asked_for(tmp_path: Path) -> None:
    x = torch.export.Dim.AUTO
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), head(8)).eval()
    path = exported(model, tmp_path / "net.onnx")
    proto = onnx.load(path)
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = str(x)
    onnx.save(proto, path)
    with pytest.raises(SourceError, match="left open; say it: --input-shape C,H,W"):
        load(str(path))
    assert load(str(path), {"input": (3, 20, 24)}).graph(torch.zeros(2, 3, 20, 24)).shape == (2, 5)


def test_weights_in_another_file(tmp_path: Path) -> None:
    model = build("residual")
    path = exported(model, tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0)
    require_same(path, model)
    before = load(str(path)).sha256
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[0] ^= 1  # of the first weight
    (tmp_path / "net.data").write_bytes(bytes(data))
    assert load(str(path)).sha256 != before
    (tmp_path / "net.data").unlink()
    with pytest.raises(SourceError, match=r"weights lie in another file that cannot be read: .*net\.data"):
        load(str(path))


@pytest.mark.parametrize("place", ["../net.data", "{}/net.data", "link.data"])
def test_weights_outside_the_folder_of_a_file(place: str, tmp_path: Path) -> None:
    """A file may not read what lies elsewhere on this machine into its weights."""
    path = exported(build("residual"), tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.data").symlink_to(tmp_path / "net.data")
    model = onnx.load(path, load_external_data=False)
    for stored in model.graph.initializer:
        for entry in stored.external_data:
            entry.value = place.format(tmp_path) if entry.key == "location" else entry.value
    (inside / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="weights lie in another file that cannot be read"):
        load(str(inside / "net.onnx"))


IMAGE = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
RESULT = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])


def saved(
    path: Path, *nodes: onnx.NodeProto, inputs: tuple[onnx.ValueInfoProto, ...] = (IMAGE,), **domains: int
) -> Path:
    weights = [numpy_helper.from_array(np.ones((4, n, 1, 1), np.float32), k) for k, n in (("w", 3), ("w4", 4))]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), *nodes], "g", list(inputs), [RESULT], weights
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(k.replace("_", "."), v) for k, v in domains.items())]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize("name", ['Conv"), {}, getattr(self, "Conv', 'Conv")\r{}\rdef f(): #'])
def test_what_a_node_is_called_is_not_compiled(name: str, tmp_path: Path) -> None:
    """torch.fx pastes it into the source of `forward`; onnx2torch takes the dots out, which code does well without."""
    marker = tmp_path / "marker"
    statement = f"open({str(marker)!r}, 'w').close()"
    code = f"exec(bytes({list(statement.encode())}))"
    path = saved(tmp_path / "net.onnx", helper.make_node("Relu", ["c"], ["y"], name=name.format(code)))
    source = load(str(path))
    assert not marker.exists() and source.graph(torch.ones(2, 3, 8, 8)).shape == (2, 4, 8, 8)


def test_parts_keep_the_names_of_nodes(tmp_path: Path) -> None:
    """As far as they are no code, and nothing that a module has already."""
    names = ("/stem/Relu", "forward", "", "/stem.Relu")
    nodes = [helper.make_node("Relu", ["c" if i == 0 else f"r{i}"], [f"r{i + 1}"], name=n) for i, n in enumerate(names)]
    path = saved(tmp_path / "net.onnx", *nodes, helper.make_node("Sigmoid", ["r4"], ["y"], name="squash me"))
    model = onnx.load(path)
    from zaq.sources.converters import _renamed

    assert [n.name for n in _renamed(model).graph.node] == [
        "Conv", "stem_Relu", "forward_2", "Relu", "stem_Relu_4", "squash_me",
    ]  # fmt: skip
    assert model.graph.node[1].name == "/stem/Relu" and load(str(path)).graph(torch.ones(2, 3, 8, 8)).shape[1] == 4


def test_onnx2torch_is_left_as_it_is(tmp_path: Path) -> None:
    """Its registry is the whole process's: what zaq registers is there while zaq reads, and not behind it."""
    from onnx2torch.node_converters.registry import _CONVERTER_REGISTRY as REGISTRY

    before = dict(REGISTRY)
    assert all("onnx2torch" in converter.__module__ for converter in before.values())
    model = build("mean_head")
    require_same(exported(model, tmp_path / "net.onnx", opset_version=18), model)
    assert before == REGISTRY


def branch() -> onnx.NodeProto:
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    then, otherwise = (
        helper.make_graph([helper.make_node(kind, ["c"], ["r"])], kind, [], result) for kind in ("Relu", "Neg")
    )
    return helper.make_node("If", ["b"], ["y"], then_branch=then, else_branch=otherwise)


def tensor(kind: int, *shape: int, name: str = "x") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def latin(path: Path) -> None:
    saved(path, helper.make_node("Relu", ["c"], ["latin"]), helper.make_node("Neg", ["latin"], ["y"]))
    path.write_bytes(path.read_bytes().replace(b"latin", b"lat\xedn"))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flow": (lambda p: saved(p, helper.make_node("IsNaN", ["c"], ["b"]), branch()), r"holds control flow \(If\)"),
    "custom": (
        lambda p: saved(
            p,
            helper.make_node("Swish2", ["c"], ["d"], domain="my.ops"),
            helper.make_node("Roll", ["d"], ["y"], domain="my.ops"),
            my_ops=1,
        ),
        r"not ONNX's own: my\.ops\.Roll, my\.ops\.Swish2",
    ),
    "missing": (
        lambda p: saved(
            p, helper.make_node("Hardmax", ["c"], ["d"]), helper.make_node("LpPool", ["d"], ["y"], kernel_shape=[2, 2])
        ),
        r"onnx2torch cannot read: Hardmax \(opset 13\), LpPool \(opset 18\)",
    ),
    "two": (
        lambda p: saved(
            p,
            helper.make_node("Add", ["c", "z"], ["d"]),
            helper.make_node("Conv", ["d", "w4"], ["y"]),
            inputs=(IMAGE, tensor(TensorProto.FLOAT, 1, name="z")),
        ),
        "must take one tensor, a batch of images; its input z is read before its last layer. .*--bind z=1,1",
    ),
    "integers": (
        lambda p: saved(p, helper.make_node("Relu", ["c"], ["y"]), inputs=(tensor(TensorProto.UINT8, 1, 3, 8, 8),)),
        "is uint8; a batch of images in float32 is expected",
    ),
    "rows": (
        lambda p: saved(p, helper.make_node("Relu", ["c"], ["y"]), inputs=(tensor(TensorProto.FLOAT, 1, 3),)),
        "has 2 dimensions",
    ),
    "invalid": (lambda p: saved(p, helper.make_node("Relu", ["nothing"], ["y"])), "is no valid ONNX file: .*nothing"),
    "resize": (
        lambda p: saved(
            p,
            helper.make_node(
                "Constant", [], ["s"], value=numpy_helper.from_array(np.array([1, 1, 1.5, 1.5], np.float32))
            ),
            helper.make_node(
                "Resize", ["c", "", "s"], ["y"], mode="cubic", coordinate_transformation_mode="asymmetric"
            ),
        ),
        "onnx2torch cannot read it: Resize of mode cubic, asymmetric",
    ),
    "bomb": (
        lambda p: saved(
            p,
            helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([600000, 600000]))),
            helper.make_node("ConstantOfShape", ["s"], ["z"]),
            helper.make_node("ReduceSum", ["z"], ["r"], keepdims=0),
            helper.make_node("Add", ["c", "r"], ["y"]),
        ),
        "is no valid ONNX file: 'z' has 3.6e\\+11 elements, more than the 1.07e\\+09",
    ),
    "latin": (latin, r"is no valid ONNX file: its output b'lat.xedn' is not in UTF-8"),
    "junk": (lambda p: p.write_bytes(b"junk"), "this is no ONNX file"),
    "empty": (lambda p: p.write_bytes(b""), "this is no ONNX file"),
}


@pytest.mark.parametrize("name", CASES)
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    make, message = CASES[name]
    make(tmp_path / "net.onnx")
    with pytest.raises(SourceError, match=rf"net\.onnx: .*{message}"):
        load(str(tmp_path / "net.onnx"))


def test_control_flow_on_the_command_line(tmp_path: Path) -> None:
    make, _ = CASES["flow"]
    make(tmp_path / "net.onnx")
    done = zaq_here("quantize", tmp_path / "net.onnx")
    assert done.exit_code == 2 and "control flow (If)" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "net.onnx", helper.make_node("Relu", ["c"], ["y"]))
    monkeypatch.setitem(__import__("sys").modules, "onnx2torch", None)
    done = zaq_here("inspect", path)
    assert done.exit_code == 2 and "onnx2torch is needed: pip install '.[onnx2torch]'" in done.stderr


def test_a_card_beside_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", helper.make_node("Relu", ["c"], ["y"]))
    (tmp_path / "net.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}))
    assert load(str(path)).card.mean == (0.5,) * 3
