"""Models as .pt2: what loads, and that no part of one is ever unpickled."""

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from zoo import build, images

from zaq.errors import SourceError, TraceError
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.ir.capture import quiet
from zaq.sources import load
from zaq.sources.frame import put_back


def save(model: nn.Module, path: Path, batch: bool = True) -> Path:
    shapes = ({0: torch.export.Dim.AUTO},) if batch else None
    with quiet():
        example = images(2).to(next(model.parameters()).dtype)
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), path)
    return path


def test_a_saved_program_is_the_model(tmp_path: Path) -> None:
    model = build("residual")
    source = load(str(save(model, tmp_path / "net.pt2")))
    torch.testing.assert_close(source.graph(images()), model(images()))
    assert source.name == "net" and source.card.input == (3, 16, 16) and not source.card.knows_pixels
    assert len(source.sha256) == 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_read_as_float32_and_said(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("pools").to(dtype)
    source = load(str(save(model, tmp_path / "net.pt2")))
    torch.testing.assert_close(source.graph(images()), model.float()(images()), atol=1e-5, rtol=1e-4)
    assert len(source.notes) == 1 and f"stored in {str(dtype)[6:]};" in source.notes[0]


class Ends(nn.Module):
    """A map, labels, nothing, and a head in float32 whatever the rest is in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.b(self.a(x).relu())
        return {"map": y, "more": [y.argmax(1), None], "head": y.mean((2, 3)).float()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_takes_and_gives_what_its_program_did(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Ends().eval().to(dtype)
    source = load(str(save(model, tmp_path / "net.pt2")))
    network = in_form(translate(program_of(source.graph)), {}, "float")
    whole = put_back(network, source.frame)
    graph = onnx.load_model_from_string(whole).graph
    ends = [onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in [*graph.input, *graph.output]]
    theirs = {torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.float64: "DOUBLE"}[dtype]
    assert ends == [theirs, theirs, "INT64", "FLOAT"]
    assert [v.name for v in [*graph.input, *graph.output]] == ["input", "output", "output_1", "output_2"]
    sizes = [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in [*graph.input, *graph.output]]
    assert sizes == [["batch", 3, 16, 16], ["batch", 4, 14, 14], ["batch", 14, 14], ["batch", 4]]
    x = images(5).to(dtype)
    run, inside = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"]), session(whole)
    assert inside.get_inputs()[0].type == "tensor(float)"  # as verification takes it, and numpy has no bfloat16
    half = dtype is torch.bfloat16
    found = run_session(inside, x.float()) if half else run.run(None, {"input": x.numpy()})
    close = {"atol": 0.03, "rtol": 0.03} if dtype is not torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    for value, right in zip(found, (v for v in pytree.tree_leaves(model(x)) if v is not None), strict=True):
        if right.is_floating_point():
            torch.testing.assert_close(torch.from_numpy(value).to(right.dtype), right, **close)
        else:
            assert (torch.from_numpy(value) == right).double().mean() > 0.95


def test_card_beside_the_file_and_flags_over_it(tmp_path: Path) -> None:
    path = save(build("residual"), tmp_path / "net.pt2")
    path.with_suffix(".json").write_text(
        json.dumps({"mean": [0.1] * 3, "std": [0.2] * 3, "resize": 20, "author": "them"})
    )
    assert load(str(path)).card.mean == (0.1,) * 3
    card = load(str(path), {"std": (0.5,) * 3}).card
    assert card.mean == (0.1,) * 3 and card.std == (0.5,) * 3 and card.resize == 20
    with pytest.raises(SourceError, match=r"inputs of \(3, 16, 16\), card or flags say \(3, 32, 32\)"):
        load(str(path), {"input": (3, 32, 32)})


@pytest.mark.parametrize(
    ("card", "message"),
    [("{", "not readable as JSON"), ("[1]", "not an object"), ('{"mean": [0.5, 0.5, 0.5]}', "come together"),
     ('{"mean": "x", "std": [1, 1, 1]}', "list of numbers"), ('{"mean": [0, 0, 0], "std": [1, 0, 1]}', "positive")],
)  # fmt: skip
def test_a_broken_card_is_named(card: str, message: str, tmp_path: Path) -> None:
    path = save(build("pools"), tmp_path / "net.pt2")
    path.with_suffix(".json").write_text(card)
    with pytest.raises(SourceError, match=f"net.json.*{message}"):
        load(str(path))


class Bomb:
    """Unpickling this raises: a test that sees the error has seen the pickle being run."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_called_pt2_is_refused_unread(tmp_path: Path) -> None:
    torch.save(Bomb(), tmp_path / "model.pt2")
    with pytest.raises(SourceError, match="this is a pickle"):
        load(str(tmp_path / "model.pt2"))


@pytest.mark.parametrize("where", ["use_pickle", "constants", "expression"])
def test_a_pickle_inside_a_pt2_is_refused_unread(where: str, tmp_path: Path) -> None:
    good, bad = save(build("residual"), tmp_path / "good.pt2"), tmp_path / "bad.pt2"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as new:
        for item in old.namelist():
            data = old.read(item)
            if where == "use_pickle" and item.endswith("weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            elif where == "constants" and item.endswith("constants_config.json"):
                data = b'{"config": {"c": {"path_name": "opaque_obj_0"}}}'
            elif where == "expression" and "/models/" in item:
                text = data.decode()
                start = text.index("Symbol(")
                data = (text[:start] + "__import__(" + text[start + len("Symbol(") :]).encode()
            new.writestr(item.replace("good/", "bad/"), data)
    with pytest.raises(SourceError, match=r"bad\.pt2: "):
        load(str(bad))


def test_what_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"hello")
    (tmp_path / "b.jpg").write_bytes(b"hello")
    with zipfile.ZipFile(tmp_path / "c.pt2", "w") as archive:
        archive.writestr("readme.txt", "hello")
    truncated = save(build("pools"), tmp_path / "d.pt2").read_bytes()
    (tmp_path / "d.pt2").write_bytes(truncated[: len(truncated) // 2])
    cases = [
        ("a.pt2", "not an archive"),
        ("b.jpg", r"'\.jpg'"),
        ("c.pt2", "no exported program"),
        ("d.pt2", "not an archive"),
        ("none.pt2", "no such file"),
    ]
    for name, message in cases:
        with pytest.raises(SourceError, match=message):
            load(str(tmp_path / name))


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="fixed to 2"):
        load(str(save(build("residual"), tmp_path / "net.pt2", batch=False)))
