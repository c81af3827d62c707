"""What can be named is known without torch, and a slip is answered before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from zaq.config.names import METHODS, SOURCES, missing, name_of
from zaq.methods import METHODS as KINDS
from zaq.sources import SOURCES as READERS
from zaq.sources import load

COLD = """
import sys
from zaq.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, *sorted({"torch", "numpy", "onnx", "onnxruntime", "rich", "pydantic"} & set(sys.modules)))
"""


def test_the_names_are_those_of_what_there_is() -> None:
    assert tuple(KINDS) == METHODS and tuple(READERS) == SOURCES


def test_a_run_is_called_as_its_model(tmp_path: Path) -> None:
    assert name_of("zoo:resnet20_cifar10") == load("zoo:resnet20_cifar10").name
    assert name_of("timm:resnet18") == name_of("hf-hub:timm/resnet18") == "resnet18"
    (tmp_path / "net.v2.pt2").touch()
    assert name_of(str(tmp_path / "net.v2.pt2")) == "net.v2"


def test_the_near_path_is_offered(tmp_path: Path) -> None:
    (tmp_path / "resnet.pt2").touch()
    assert missing(tmp_path / "resnt.pt2").endswith(f"Did you mean {tmp_path / 'resnet.pt2'}?")
    assert missing(tmp_path / "no" / "such").endswith("there is no such file or folder.")


@pytest.mark.parametrize(("args", "told"), [
    (["--help"], "Commands:"),
    (["quantize", "--help"], "flagship"),
    (["quantize", "--bits", "w44"], "is not of the form w<bits>a<bits>"),
    (["quantize", "--metod", "rtn"], "--method"),
    (["quantize", "--method", "rtnn"], "Did you mean 'rtn'?"),
    (["quantize", "--method", "rtn", "--proxy", "."], "--proxy goes with --method flagship alone"),
    (["quantize", "--proxy", "nowhere"], "--proxy nowhere: there is no such file or folder"),
    (["quantize", "resnt.pt2"], "there is no such file or folder"),
    (["quantize", "tim:resnet18"], "Did you mean 'timm'?"),
    (["benchmark", "paln.yaml", "-o", "out"], "paln.yaml: there is no such file or folder"),
    (["benchmark", "resnt.pt2", "-o", "out"], "resnt.pt2: there is no such file or folder"),
    (["inspect", "resnt.pt2"], "there is no such file or folder"),
    (["watch", "nowhere"], "there is no log.jsonl"),
    *[([verb, "nowhere"], "nowhere: there is no such file or folder") for verb in ("verify", "export", "profile")],
    (["eval", "nowhere", "--data", "folder:x"], "nowhere: there is no such file or folder"),
])  # fmt: skip
def test_a_slip_does_not_wait_for_torch(args: list[str], told: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", COLD, *args], capture_output=True, text=True, cwd=tmp_path)
    *said, last = done.stdout.splitlines()
    assert last == ("0" if "--help" in args else "2"), done.stdout + done.stderr
    assert told in "\n".join(said) + done.stderr
