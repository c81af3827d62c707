"""The same files in runtimes that share no kernel with onnxruntime on this processor: onnx's reference, and
WebAssembly.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from zoo import CARD, images, quantized_net

from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.data import batches
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.methods.rtn import RTN
from zaq.sources import load

WEB, SCRIPT = "1.30.0", Path(__file__).with_name("web.mjs")
LAST_BITS = 1e-6  # of the range: floats behind the last integer are summed in another order


def reference(path: Path, x: Tensor) -> NDArray[np.float32]:
    """The first output in onnx's reference evaluator."""
    found: NDArray[np.float32] = ReferenceEvaluator(str(path)).run(None, {"input": x.numpy()})[0]
    return found


def assert_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """The same output but for the last bits: in these nets, on these images, no rounding flips."""
    assert np.abs(found - expected).max() <= LAST_BITS * np.ptp(expected)


@pytest.mark.parametrize(
    ("name", "bits", "activations"),
    [
        ("residual", "w8a8", "affine"),
        ("concat", "w4a4", "affine"),
        ("pools", "w4a4", "affine"),
        ("mean_head", "w4a4", "affine"),  # which pads
        ("signed", "w4a4", "symmetric"),
        ("depthwise", "w8a8", "symmetric"),
    ],
)
def test_reference(name: str, bits: str, activations: str, tmp_path: Path) -> None:
    """Not of the qoperator form: it has operators of com.microsoft, which the reference does not know."""
    quantized = quantized_net(name, QConfig.parse(bits, activations=activations), RTN(), card=CARD)
    translated, x, path = translate(program_of(quantized.module)), images(16) * 1.5, tmp_path / "model.onnx"
    for form in ("qdq", "packed") if bits == "w4a4" else ("qdq",):
        path.write_bytes(in_form(translated, {}, form))
        assert_same(reference(path, x), run_session(session(path), x)[0])


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with onnxruntime-web in it, removed afterwards (150 MB); skips where it cannot be installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed; onnxruntime-web runs in them")
    folder = tmp_path_factory.mktemp("web")
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--prefix", str(folder)]
    try:
        subprocess.run(
            ["npm", "install", *quiet, f"onnxruntime-web@{WEB}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=180,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install onnxruntime-web {WEB}: {error.stderr or error}")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("bits", [pytest.param("w8a8", marks=pytest.mark.slow), "w4a4"])
def test_web(bits: str, packages: Path, cifar: str, tmp_path: Path) -> None:
    """ResNet-20 in WebAssembly. At 8 bits a few sums of skip connections (six of 131072 in the first to part from the
    reference) round to the other side in x86's kernel, a step of 255 each, and later layers spread that."""
    source = load("zoo:resnet20_cifar10")
    quantized = quantize_graph(source.graph, QConfig.parse(bits), RTN(), card=source.card)
    x = next(batches(cifar, source.card, 64))[0]
    model, raw, output = tmp_path / "model.onnx", tmp_path / "images", tmp_path / "output"
    raw.write_bytes(x.numpy().tobytes())
    translated = translate(program_of(quantized.module))
    for form in ("qdq", "packed") if bits == "w4a4" else ("qdq",):
        model.write_bytes(in_form(translated, {}, form))
        command = ["node", SCRIPT, packages, model, raw, output, ",".join(map(str, x.shape))]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["version"] == WEB
        expected = run_session(session(model), x)[0]
        found = np.frombuffer(output.read_bytes(), np.float32).reshape(expected.shape)
        same, off = (found == expected).mean(), np.abs(found - expected).max() / np.ptp(expected)
        print(
            f"{bits} {form}: {100 * same:.1f} % of the logits equal, largest difference {off:.2g} of their range; "
            f"{done.stdout}"
        )
        assert (found.argmax(1) == expected.argmax(1)).all()
        assert off < (0.02 if bits == "w8a8" else LAST_BITS)
