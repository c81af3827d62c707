"""Timing's shape, and the rival: no number of milliseconds can be promised here."""

from pathlib import Path

import pytest
import torch
from zoo import SHAPE, images, quantized_net

from zaq.config.card import Card
from zaq.cost.latency import FLOAT, SLICES, STATIC_INT8, contenders, measure, speed, speed_sentence, table
from zaq.errors import SourceError
from zaq.export.session import run_session, session
from zaq.methods.rtn import RTN
from zaq.verify.kernels import kernels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return both_forms("residual", tmp_path_factory.mktemp("export"))


def both_forms(name: str, folder: Path) -> Path:
    """A quantized net as `model.onnx`, and its float form beside it as `plain`."""
    quantized = quantized_net(name, "w8a8", RTN(), card=Card(input=SHAPE))
    quantized.export(folder / "model.onnx")
    quantized.export(folder / "plain", form="float")
    return folder / "model.onnx"


def test_every_file_at_every_setting(model: Path) -> None:
    rows = measure({FLOAT: model, "again": model.read_bytes()}, batches=(1, 3), threads=(1, 2), seconds=0)
    assert [(r.name, r.batch, r.threads) for r in rows] == [
        (n, b, t) for b in (1, 3) for t in (1, 2) for n in (FLOAT, "again")
    ]
    assert all(0 < r.low <= r.median <= r.high and r.runs >= SLICES for r in rows)
    assert all(r.speedup == 1 for r in rows if r.name == FLOAT)
    assert len(table(rows)) == 9 and table(rows)[1][:3] == ["float", "1", "1"]
    (alone,) = measure({"ours": model}, batches=(1,), threads=(1,), seconds=0)
    assert alone.speedup is None and table([alone])[1][-1] == ""


def test_our_file_beside_the_float_one(model: Path) -> None:
    found = speed((model.parent / "plain").read_bytes(), model, SHAPE)
    assert found["times"] == pytest.approx(found["float"] / found["ours"]) and found["ours"] > 0
    assert speed_sentence(found | {"times": 0.9}).startswith("SLOWER than the float network: 0.90 times")
    assert speed_sentence(found | {"times": 1.5}).startswith("1.50 times as fast")


def test_the_rival_is_a_working_int8_file(model: Path, tmp_path: Path) -> None:
    files = contenders((model.parent / "plain").read_bytes(), model, images(20), tmp_path)
    assert list(files) == [FLOAT, "model.onnx", STATIC_INT8]
    counts = kernels(tmp_path / "int8.onnx").counts
    assert counts["QLinearConv"] == 4 and "Conv" not in counts
    x = images(20)
    found, expected = (torch.from_numpy(run_session(session(tmp_path / f"{n}.onnx"), x)[0]) for n in ("int8", "float"))
    assert (found - expected).pow(2).mean() < 0.05 * expected.var()


def test_noise_calibrates_where_there_are_no_samples(tmp_path: Path) -> None:
    """And a transposed convolution, at which onnxruntime's quantization per channel fails, stays in float."""
    model = both_forms("transposed", tmp_path)
    (tmp_path / "out").mkdir()
    contenders((tmp_path / "plain").read_bytes(), model, None, tmp_path / "out")
    assert {"ConvTranspose", "QLinearConv"} <= set(kernels(tmp_path / "out" / "int8.onnx").counts)


def test_a_broken_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not onnx at all")
    with pytest.raises(SourceError, match="onnxruntime cannot load it"):
        measure({"ours": tmp_path / "model.onnx"})
