"""Fixtures: the data that lies beside a checkout (used where it is),
and a run made once for the tests that read one."""

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT / "tests"))
exporter = importlib.import_module("torch.onnx._internal.exporter._registration").onnxscript_apis
# What it reads anew of onnxscript for every file takes half of a small network's export; a user exports one.
exporter.get_torchlib_ops = functools.cache(exporter.get_torchlib_ops)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; pytest itself runs two
torch.set_num_threads(1)

settings.register_profile("repeatable", derandomize=True, deadline=None)  # CI tries the same cases every time
settings.load_profile("repeatable")

with warnings.catch_warnings():  # the imports of these warn of their own deprecated corners
    warnings.simplefilter("ignore")
    import onnxscript  # noqa: F401

    from zaq.cli import main
    from zaq.cost import latency
    from zaq.sources.operators import define_missing_operators

    define_missing_operators()
latency.GLANCE = 0.0  # no test says how fast a file is: a few runs of each show that it is told


def benchmark_script(name: str) -> ModuleType:
    """`benchmarks/NAME.py` as a module, under a name of its own: `zaq.benchmark` and pytest have theirs."""
    spec = importlib.util.spec_from_file_location(f"benchmark_of_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the checkout; tests that measure on it skip where it is not."""
    if not (SHARED / "models").is_dir():
        pytest.skip(
            f"{SHARED} does not lie beside this checkout; it holds the networks and images this test measures on"
        )
    return SHARED


@pytest.fixture(scope="session")
def cifar(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`cifar10:DIR` with the real test set."""
    folder = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, shared / "data" / "unpack.py", folder], check=True, capture_output=True)
    return f"cifar10:{folder}"


def zaq(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line the way a user does, in a process of its own."""
    command = [sys.executable, "-m", "zaq", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=900)


def zaq_here(*args: object) -> Result:
    """The same in this process, whose imports of timm, torchvision and onnx2torch are paid for already."""
    return CliRunner().invoke(main, list(map(str, args)))


def begun(*args: object, alone: bool = False) -> "subprocess.Popen[str]":
    """`zaq quantize` in a process of its own, which the test goes on beside; `alone`: with all it starts, as a terminal
    has them, so that they can be sent one signal."""
    command = [sys.executable, "-m", "zaq", "quantize", *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=alone)


def wait_for(there: Callable[[], bool], seconds: float = 240) -> None:
    """Until something is there."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.02)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest first, so that none of them is what everything else has to wait for at the end."""
    items.sort(key=lambda item: item.path.name != "test_shared.py")


SYNTHESIS = ["synthesis", "held-out synthesis", "refine", "held-out refine"]  # stages
# Steps of the default method, enough to pass through every stage of it.
LENGTHS = {"synthesis": 4, "refine": 2, "images": 128, "reconstruct": 2, "polish": 5, "game": 1}
FEW = ("--effort", "fast", *(part for name, steps in LENGTHS.items() for part in ("-s", f"{name}={steps}")))
# Fewer still, for the toy below.
QUICK = ("--effort", "fast", "-s", "synthesis=2", "-s", "refine=1", "-s", "images=64", "-s", "reconstruct=1")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual toy as a .pt2."""
    from zoo import saved

    return saved("residual", tmp_path_factory.mktemp("models") / "net.pt2")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the shipped model at w4a4, made by the command line with few steps."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    done = zaq("quantize", "--bits", "w4a4", *FEW, "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder
