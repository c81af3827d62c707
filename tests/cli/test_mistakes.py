"""Forty things that people are likely to type, and what they are told. Each is refused before a network is touched."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import zaq_here

from zaq.cli.kinds import DATA

TABLE: list[tuple[str, str]] = [
    # Where a model is expected
    ("quantize resnet18", "Did you mean timm:resnet18?"),
    ("quantize resnet20_cifar10", "Did you mean zoo:resnet20_cifar10?"),
    ("quantize timm/resnet18", "Did you mean timm:resnet18?"),
    ("quantize microsoft/resnet-50", "Did you mean hf-hub:microsoft/resnet-50?"),
    ("quantize hf:timm/resnet18", "Did you mean 'hf-hub'?"),
    ("quantize https://example.org/net.onnx", "download it, and name the file"),
    ("quantize nett.onnx", "Did you mean net.onnx?"),
    ("quantize models", "models: is a folder; name the file in it: a.onnx, b.pt2"),
    ("quantize empty", "empty: is a folder, and no model is in it"),
    ("quantize saved", "is a SavedModel of TensorFlow; python -m tf2onnx.convert --saved-model saved"),
    ("quantize run", "run: is a run, quantized already; zaq verify run checks it"),
    ("quantize net.tflite", "python -m tf2onnx.convert --tflite"),
    ("quantize net.keras", "format='onnx') of Keras"),
    ("quantize net.h5", "load it in Keras"),
    ("quantize net.engine", "compiled for one GPU; take the float ONNX file"),
    ("quantize net.py", "name the function in it that makes the network, as net:make"),
    ("quantize net.zip", "unpack it"),
    ("quantize net.json", "name the model's file beside it"),
    ("quantize weights.pkl", "a pickle can run any code"),
    ("net.onnx", "To quantize it: zaq quantize net.onnx."),
    ("timm:resnet18", "To quantize it: zaq quantize timm:resnet18."),
    ("quantize zoo:resnet20", "Did you mean 'resnet20_cifar10'?"),
    # Bits
    ("quantize --bits 16", "weights of 16 bits; 2 to 8 are supported"),
    ("quantize --bits fp8", "is not of the form w<bits>a<bits>, as in w4a4; or one number for both, as in 8 or int8"),
    ("quantize --bits w4", "is not of the form w<bits>a<bits>"),
    ("quantize --bits mixed", "needs a size to reach: --target-size 0.3MB"),
    ("quantize --bits 4 --layer-bits fc", "--layer-bits fc: write REGEX=BITS"),
    ("quantize --bits 4 --layer-bits fc=16", "'16' is none of 2 to 8 bits"),
    ("quantize --bits 4 --layer-bits (=8", "is no regular expression"),
    ("quantize --bits 4 --exclude *head", "is no regular expression"),
    ("quantize --weights per_tensr", "Did you mean 'per_tensor'?"),
    ("quantize --placement int", "Did you mean 'integer'?"),
    ("quantize --target tensort", "Did you mean 'tensorrt'?"),
    # Methods and their constants
    ("quantize --method RTN", "Did you mean 'rtn'?"),
    ("quantize --method gdqf", "Did you mean 'gdfq'?"),
    ("quantize --effort fats", "Did you mean 'fast'?"),
    ("quantize -s polish", "Write key=value."),
    ("quantize -s drop=2", "a number from 0 to 1 is expected"),
    ("methods zqa", "Did you mean 'zaq'?"),
    # Images
    ("quantize --normalize ImageNet", "Did you mean 'imagenet'?"),
    ("quantize --normalize none --mean 0.5,0.5,0.5 --std 1,1,1", "--mean and --std cannot be beside it"),
    ("quantize --input-shape 224x224", "takes inputs of (3, 32, 32)"),
    ("quantize --data folder:models", "reads no data; only ft does"),
    ("eval net.onnx --data empty", "of what kind is it? Write KIND:empty"),
    ("eval run/model.onnx --data csv:models", "cannot load it"),
    # Runs, and the rest
    ("verify net.onnx", "net.onnx: is a file; name the folder of its run"),
    ("verify empty", "empty: is no run of zaq quantize"),
    ("export run --format packd", "Did you mean 'packed'?"),
    ("quantize --device gpu", "torch calls it cuda, or mps on a Mac"),
    ("quantize --precision fp16", "There is: 16-mixed, 32-true, bf16-mixed"),
    ("quantize --config net.json", "net.json: unknown option 'maen'. Did you mean 'mean'?"),
    ("quantize --config code.json", "names --method my.code:Method, which is code"),
    ("quantize --config run/options.json", "does not say what was asked for"),
    ("quantize --config net.onnx", "is not readable as JSON"),
]
FILES = ("net.onnx", "net.tflite", "net.keras", "net.h5", "net.engine", "net.py", "net.zip", "weights.pkl",
         "models/b.pt2", "models/a.onnx", "saved/saved_model.pb", "run/quantized.pt2", "run/model.onnx")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    for name in FILES:
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"\xff")
    (made / "empty").mkdir()
    (made / "net.json").write_text(json.dumps({"maen": [0.5]}))
    (made / "code.json").write_text(json.dumps({"method": "my.code:Method"}))
    (made / "run" / "options.json").write_text(json.dumps({"qconfig": {}, "bits": "w4a4"}))
    return made


@pytest.mark.parametrize(("command", "told"), TABLE, ids=[command for command, _ in TABLE])
def test_a_mistake_and_its_answer(command: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    done = zaq_here(*command.split())
    assert done.exit_code == 2 and told in " ".join(done.stderr.split()), done.output
    assert "did not foresee" not in done.output and sorted(folder.rglob("*")) == before


def test_there_are_forty() -> None:
    assert len(TABLE) >= 40 and len({command for command, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("files", "kind"), [
    (["test_batch.bin"], "cifar10"), (["cifar-10-batches-py/test_batch"], "cifar10"), (["test.bin"], "cifar100"),
    (["labels.csv", "a.png"], "csv"), (["images/a.jpg", "labels/a.txt"], "yolo"),
    (["images/a.png", "masks/a.png"], "masks"), (["a.png", "b.png"], "images"), (["images/a.png"], "images"),
    (["cat/a.jpg", "dog/b.jpg"], "folder"), (["val/cat/a.jpg"], "folder"),
])  # fmt: skip
def test_a_path_alone_is_taken_for_what_it_looks_like(
    files: list[str], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert DATA.convert(str(tmp_path), None, None) == f"{kind}:{tmp_path}"
    assert f"--data {tmp_path}: is taken for {kind}:{tmp_path}" in capsys.readouterr().err


def test_what_has_its_kind_is_left_alone() -> None:
    assert DATA.convert("folder:somewhere", None, None) == "folder:somewhere"


def complete(words: str, part: str, **environment: Any) -> list[str]:
    """What bash offers behind `zaq WORDS` for a word that begins with `part`: as click's own script asks."""
    line = f"zaq {words} {part}"
    asked = {"_ZAQ_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - bool(part))}
    code = "import sys; sys.argv = ['zaq']; from zaq.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env={**environment, **asked}, capture_output=True, text=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_values_are_completed() -> None:
    path = {"PATH": shutil.os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}  # type: ignore[attr-defined]
    assert complete("quantize --method", "deep", **path) == ["deepinversion"]
    assert complete("quantize", "t", **path) == ["timm:", "torchvision:"]
