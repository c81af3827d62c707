"""What a user can do wrong at the command line, or find in a file, ends in a sentence: never in a trace."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import zaq_here
from safetensors.torch import save_file
from zoo import build, images

from zaq.ir.capture import quiet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, and a run of it."""
    folder = tmp_path_factory.mktemp("made")
    with quiet():
        batch = ({0: torch.export.Dim.AUTO},)
        torch.export.save(
            torch.export.export(build("residual"), (images(2),), dynamic_shapes=batch), folder / "net.pt2"
        )
    (folder / "net.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3}))
    done = zaq_here("quantize", folder / "net.pt2", "--method", "rtn", "-o", folder / "run")
    assert done.exit_code == 0, done.output
    return folder


def refused(*args: object, told: str, code: int = 2) -> None:
    done = zaq_here(*args)
    assert done.exit_code == code and told in done.stderr.replace("\n", " "), done.output
    assert "did not foresee" not in done.output


@pytest.mark.parametrize(("flags", "told"), [
    (["--seed", 2**64], "is not in the range"),
    (["--seed", -1], "is not in the range"),
    (["--threads", 0], "is not in the range"),
    (["--first-last", "²"], "a number of bits is expected"),
    (["--first-last", "9" * 5000], "a number of bits is expected"),
    (["--bits", "w4a" + "9" * 5000], "is not of the form w<bits>a<bits>"),
    (["--bits", "mixed", "--target-size", "9" * 400 + "MB"], "a size is expected"),
    (["--input-shape", "3,-1,16"], "it must be positive"),
    (["--input-shape", "3,0,16"], "it must be positive"),
    (["--resize", 0], "is not in the range"),
    (["--crop", -5], "is not in the range"),
    (["--mean", "nan,0,0", "--std", "1,1,1"], "card: mean.0 is nan"),
    (["--mean", "0,0,0", "--std", "inf,1,1"], "card: std.0 is inf"),
    (["--mean", "0,0,0", "--std", "0,1,1"], "it must be positive"),
    (["--method", "rtn", "-s", "observer=foo"], "unknown observer 'foo'"),
    (["--method", "dfq", "-s", "relu6.x=1"], "unknown stage"),
    (["--kwargs", "[" * 100_000], "is no JSON object"),
    (["-o", "x" * 300], "File name too long"),
])  # fmt: skip
def test_flags(flags: list[Any], told: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused("quantize", made / "net.pt2", *flags, told=told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "content", "told"), [
    ("options.json", b"[]", "options.json"),
    ("options.json", b"\xff\xfe{", "not in UTF-8"),
    ("options.json", b'{"card": {}}', "says nothing of 'bits'"),
    ("options.json", None, "no run of zaq quantize"),
    ("samples.safetensors", b"junk", "no readable safetensors file"),
    ("samples.safetensors", {"other": torch.zeros(1)}, "no readable safetensors file"),
    ("samples.safetensors", {"pixels": torch.zeros(2, 3, 16, 16)}, "bytes (N, 3, 16, 16) are expected"),
    ("samples.safetensors", {"pixels": torch.zeros(0, 3, 16, 16, dtype=torch.uint8)}, "bytes (N, 3, 16, 16)"),
    ("samples.safetensors", {"pixels": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "bytes (N, 3, 16, 16)"),
    ("quantized.pt2", b"junk", "quantized.pt2"),
    ("model.onnx", b"junk", "model.onnx"),
])  # fmt: skip
def test_parts_of_a_run(name: str, content: Any, told: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink()
    if content is None:
        path.mkdir()
    elif isinstance(content, dict):
        save_file(content, path)
    else:
        path.write_bytes(content)
    verb = ["export", "--overwrite"] if name == "options.json" else ["verify"]  # which would say they do not fit
    refused(*verb, tmp_path / "run", told=told)


def test_options_of_another_kind(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    path = tmp_path / "run" / "options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target": ["onnxruntime"]}))
    refused("export", tmp_path / "run", "--overwrite", told="its target is ['onnxruntime']")


@pytest.mark.parametrize("verb", ["verify", "eval"])
@pytest.mark.parametrize("text", ["{", "[]", "3", '{"input": 3}', "²"])
def test_properties_that_are_no_json(verb: str, text: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    path = tmp_path / "run" / "model.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == {"verify": "zaq.parts", "eval": "zaq.card"}[verb]:
            entry.value = text
    onnx.save(model, path)
    if verb == "verify" and text.startswith('{"'):
        return  # a file that names no parts of this folder has nothing to be held against
    where = [tmp_path / "run"] if verb == "verify" else [path, "--data", f"npz:{tmp_path}/x.npz"]
    refused(verb, *where, told="its property zaq." if text != '{"input": 3}' else "card")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"{}[", b"[]", b'{"mean": "a"}', b'{"input": [3, -1, 16]}', b'{"input": 5}']
)
def test_cards(content: bytes, made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "net.pt2", tmp_path / "net.pt2")
    (tmp_path / "net.json").write_bytes(content)
    refused("inspect", tmp_path / "net.pt2", told="net.json")


def test_a_card_that_cannot_be_opened(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "net.pt2", tmp_path / "net.pt2")
    (tmp_path / "net.json").mkdir()
    refused("inspect", tmp_path / "net.pt2", told="no plain file")


def test_a_file_whose_outputs_are_no_numbers_is_not_measured(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "run" / "model.onnx")
    scale = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.full(scale.dims, np.nan, np.float32), scale.name))
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if o == name else o for o in node.output]
    model.graph.node.append(onnx.helper.make_node("Sub", ["before", "nan"], [name]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([np.nan]), "nan"))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 16, 16, 3), np.uint8), labels=np.zeros(4, int))
    told = "the model's outputs for 4 of 4 images"
    refused("eval", tmp_path / "model.onnx", "--data", f"npz:{tmp_path}/set.npz", told=told, code=1)


def test_threads_are_set_and_recorded(made: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        done = zaq_here("quantize", made / "net.pt2", "--method", "rtn", "--threads", 2, "-o", tmp_path / "run")
        assert done.exit_code == 0 and torch.get_num_threads() == 2
        assert json.loads((tmp_path / "run" / "options.json").read_text())["threads"] == 2
    finally:
        torch.set_num_threads(before)
