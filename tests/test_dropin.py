"""The code of packages runs on our file in place of theirs, unchanged. Installed they have to be: see the script."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

pytest.importorskip("onnx2torch")


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wild_dropin", ROOT / "benchmarks" / "wild" / "dropin.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "reason"), [("cls", "rapidocr-onnxruntime"), ("detector", "nudenet")])
def test_a_package_takes_our_file_for_its_own(name: str, reason: str, tmp_path: Path) -> None:
    dropin = script()
    case = dropin.CASES[name]
    file = dropin.shipped(case)
    if file is None:
        pytest.skip(f"{reason} is not installed; benchmarks/wild/dropin.py says how")
    for package in ("cv2", case.package):
        pytest.importorskip(package)
    wanted, found = case.answer(file), case.answer(dropin.quantized(case, file, tmp_path / "out"))
    assert type(found) is type(wanted) and len(found) == len(wanted)
