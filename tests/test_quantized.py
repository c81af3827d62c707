"""A quantized network in Python: trained on, exported, saved, loaded, verified, measured, shown."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import zaq_here
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from zoo import CARD, build, images, quantized_net

import zaq
from zaq.engine.progress import Progress, in_notebooks
from zaq.errors import DataError, RunError, SourceError, TrainingError, UserError
from zaq.export.session import run_session, session
from zaq.methods.rtn import RTN
from zaq.quantized import Learned, Quantized, _require_it_runs


@pytest.fixture(scope="module")
def quantized() -> Learned:
    return quantized_net("residual", "w4a4", RTN(), card=CARD)


@pytest.fixture(scope="module")
def saved(quantized: Learned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    quantized.save(folder)
    return folder


def test_it_trains_on_in_an_ordinary_loop(tmp_path: Path) -> None:
    """Five steps of SGD at 1e-2, and five more at a rate that moves scales far."""
    quantized = quantized_net("residual", "w4a4", RTN(), card=CARD)
    net, x, teacher = quantized.trainable(), images(16), build("residual")
    assert quantized.trainable() is net is quantized.module
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1e-2, momentum=0.9)
    with torch.no_grad():
        target = teacher(x)
    losses = []
    for _ in range(5):
        loss = F.mse_loss(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.any() for n, p in net.named_parameters() if p.requires_grad), "all learn"
    quantized.export(tmp_path / "net.onnx")
    (found,) = run_session(session(tmp_path / "net.onnx"), x)
    with torch.no_grad():
        expected = net(x)
    assert (torch.from_numpy(found) - expected).square().mean() < 1e-2 * expected.var()
    assert any("trained on in Python" in note for note in quantized.report["notes"])
    written = {p.key: p.value for p in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert "trained on" in json.loads(written["zaq.real_images_read"])
    for group in optimizer.param_groups:
        group["lr"] = 30.0
    F.mse_loss(net(x), target).backward()  # export left the module to be trained on
    optimizer.step()
    assert all(bool((q.scale > 0).all()) for q in quantized.student.quantizers())


def test_ranges_that_the_graph_guarantees_are_not_learned() -> None:
    quantized = quantized_net("residual", "w8a8", RTN(), card=CARD)
    fixed = [q for q in quantized.student.quantizers() if q.guaranteed]
    net = quantized.trainable()
    assert fixed and not any(p.requires_grad for q in fixed for p in q.parameters())
    assert all(p.requires_grad for n, p in net.named_parameters() if not n.startswith("quant."))


def test_a_student_that_training_broke_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    quantized = quantized_net("residual", "w4a4", RTN(), card=CARD)
    with torch.no_grad():
        next(iter(quantized.student.placement.activations.values())).scale.neg_()
    with pytest.raises(TrainingError, match=r"scale that is not positive.*`trainable\(\)`"):
        quantized.export(tmp_path / "net.onnx")
    with pytest.raises(TrainingError):
        quantized.save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_export_runs_what_it_wrote(quantized: Learned, tmp_path: Path) -> None:
    quantized.export(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) == 4:  # a scale of an activation
            tensor.raw_data = b"\0" * 4
            tensor.dims[:] = [1, 1, 1]
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(RunError, match="is written, and onnxruntime does not run it"):
        _require_it_runs(tmp_path / "net.onnx", tmp_path / "net.onnx", CARD.input)


def test_a_run_is_saved_and_loaded(quantized: Learned, saved: Path, tmp_path: Path) -> None:
    assert zaq_here("verify", saved).exit_code == 0
    loaded = zaq.load(saved)
    assert isinstance(loaded, Quantized) and not isinstance(loaded, Learned)
    x = images(4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), quantized.module(x), atol=1e-4, rtol=1e-4)
    assert repr(loaded) == repr(quantized) and loaded.rows == quantized.rows
    loaded.save(tmp_path / "again")
    for name in ("model.onnx", "report.json", "samples.safetensors"):
        assert (tmp_path / "again" / name).is_file()
    ours, theirs = (run_session(session(p / "model.onnx"), x)[0] for p in (saved, tmp_path / "again"))
    assert (ours == theirs).all()
    with pytest.raises(UserError, match="it was loaded, with biases rounded"):
        loaded.trainable()
    with pytest.raises(zaq.ZaqError, match="exists already"):
        loaded.save(tmp_path / "again")


def test_what_is_no_run_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no run of zaq quantize"):
        zaq.load(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        zaq.load(saved, {"crop": 8})
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text("[]")
    with pytest.raises(SourceError, match="its report or log is not what zaq quantize wrote"):
        zaq.load(tmp_path / "run")


def test_it_is_verified_and_its_cost_is_told(quantized: Learned, saved: Path) -> None:
    parity = quantized.verify()
    assert parity.samples == len(quantized.samples) and parity.agreement > 95  # type: ignore[arg-type]
    ours, theirs = quantized.profile()["files"], json.loads((saved / "report.json").read_text())["deployment"]["files"]
    assert ours["float"] == theirs["float"] and ours["model.onnx"]["packed"] == theirs["model.onnx"]["packed"]


def test_it_is_measured_on_batches(quantized: Learned, tmp_path: Path) -> None:
    x = images(20)
    with torch.no_grad():
        labels = quantized.module(x).argmax(1)
    labels[15:] = (labels[15:] + 1) % 5
    loader = DataLoader(TensorDataset(x, labels), batch_size=8)
    assert quantized.evaluate(loader).fields()["correct"] == 15
    assert str(quantized.evaluate(loader, limit=10)).endswith("10 of 10 images)")
    with pytest.raises(DataError, match="unknown kind of data set"):
        quantized.evaluate(f"pictures:{tmp_path}")


@pytest.mark.parametrize(("batches", "told"), [
    ([], "hold no images"),
    ([images(2)], "images and labels are expected"),
    ([(images(2), [1, 2])], r"a batch is \(Tensor, list\)"),
    ([(images(2), torch.zeros(3, dtype=torch.long))], "a whole number for each of 2 images"),
    ([(images(2), torch.zeros(2))], "a whole number for each of 2 images"),
    ([((255 * images(2)).byte(), torch.zeros(2, dtype=torch.long))], "the images are torch.uint8"),
])  # fmt: skip
def test_batches_that_are_none(quantized: Learned, batches: list[Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        quantized.evaluate(batches)


def test_it_is_shown_in_a_line_and_in_a_notebook(quantized: Learned) -> None:
    assert repr(quantized).startswith("Quantized(module at w4a4: method rtn, default; size ") and "\n" not in repr(
        quantized
    )
    quantized.report["options"]["source"] = {"name": "<script>", "sha256": None}
    page = quantized._repr_html_()
    quantized.report["options"]["source"] = {"name": "module", "sha256": None}
    assert page.count("border-radius") >= 6 and "&lt;script&gt;" in page and "<script>" not in page


def test_bars_are_for_notebooks() -> None:
    """Elsewhere a call in Python is silent, as it was; tests/test_examples.py runs it in a notebook."""
    assert type(in_notebooks()) is Progress


def test_dir_shows_the_api_and_nothing_else() -> None:
    """Though many of its modules are imported here."""
    assert "zaq.cli.options" in sys.modules and dir(zaq) == sorted(zaq.__all__)


def test_what_is_written_into_a_report_is_in_that_one_alone(quantized: Learned) -> None:
    other = quantized_net("residual", "w4a4", RTN(), card=CARD)
    other.report["options"]["source"]["name"] = "another"
    assert quantized.report["options"]["source"]["name"] == "module"
