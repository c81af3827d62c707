"""Runs that learned from photographs (`zaq quantize --proxy`): marked wherever one looks, and refused in sentences."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from conftest import QUICK, zaq_here
from PIL import Image
from zoo import CARD, quantized_net

from zaq.cli.quantize import _data_read
from zaq.config.names import PROXIES
from zaq.engine.images import IMAGES
from zaq.methods import METHODS
from zaq.quantized import PYTHON, Quantized
from zaq.report.facts import onnx_metadata

NORMALIZED = ("--normalize", "cifar10")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 of them, of three sizes."""
    folder, numbers = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i in range(70):
        pixels = numbers.integers(0, 256, (20 + i % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def marked(model: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of them, and what it said."""
    out = tmp_path_factory.mktemp("marked") / "out"
    done = zaq_here("quantize", model, *NORMALIZED, *QUICK, "--proxy", photographs, "-o", out)
    assert done.exit_code == 0, done.stderr
    return out, done.stdout


def read_of(path: Path) -> Any:
    """What a file's properties say of real images."""
    found = {p.key: p.value for p in onnx.load(path).metadata_props}
    return json.loads(found["zaq.real_images_read"])


def test_it_is_marked_in_red_in_page_and_lines_and_in_every_file(marked: tuple[Path, str], photographs: Path) -> None:
    (out, said), mark = marked, f"images:{photographs}"
    assert f"REAL IMAGES READ: {mark}" in said and "no data read" not in said and "note: not data-free" in said
    report = json.loads((out / "report.json").read_text())
    assert report["options"]["data"] == mark
    assert _data_read(report) == click.style(f"REAL IMAGES READ: {mark}", fg="red")
    page = (out / "report.html").read_text()
    assert f'<p class="real"><b>Real images were read: {mark}. This run is not data-free.</b>' in page
    assert "No real image" not in page and ".real { color: var(--wrong); }" in page
    assert read_of(out / "model.onnx") == mark
    inspected = zaq_here("inspect", out / "quantized.pt2")
    assert f"warning: not data-free: real images were read for its weights, '{mark}'" in inspected.stdout
    assert zaq_here("export", out, "--format", "packed").exit_code == 0
    assert read_of(out / "model.packed.onnx") == mark
    again = Quantized.load(out)
    assert f"data read {mark}" in repr(again) and f'color: #c00">{mark}<' in again._repr_html_()


def test_a_run_without_is_not() -> None:
    made = quantized_net("residual", "w8a8", METHODS["rtn"](), card=CARD)
    assert onnx_metadata(made.report["options"])["real_images_read"] is None
    assert "color: #c00" not in made._repr_html_()
    made.report["options"]["data"] = "images:here"
    made.trainable()
    assert made.report["options"]["data"] == f"images:here, and {PYTHON}", "training on does not take a mark away"


def test_no_photograph_is_left_and_no_other_run_can_take_any(
    marked: tuple[Path, str], model: Path, tmp_path: Path
) -> None:
    out, _ = marked
    assert not (out / IMAGES).exists() and not (out / "snapshots").exists()
    done = zaq_here("quantize", model, *NORMALIZED, "--method", "rtn", "--samples", out, "-o", tmp_path / "b")
    assert done.exit_code == 2 and "one that photographs were read for (--proxy) leaves none" in done.stderr


def test_methods_that_can_learn_from_them_are_known_without_torch() -> None:
    assert tuple(name for name, kind in METHODS.items() if kind.proxies) == PROXIES


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--method", "rtn", "--proxy", "{photographs}"),
            "--proxy goes with --method flagship alone; rtn is handed no",
        ),
        (("--method", "ft", "--proxy", "{photographs}"), "--proxy goes with --method flagship alone; ft is handed no"),
        (("--proxy", "{photographs}s"), "there is no such file or folder. Did you mean {photographs}?"),
        (("--proxy", "{photographs}/00.png"), "00.png: is a file; name the folder that the photographs are in"),
        (("--proxy", "{photographs}", "--samples", "RUN"), "both say what is learned from; leave one out"),
        (("--proxy", "{photographs}"), "the model's normalisation is unknown, so photographs cannot be prepared"),
        ((*NORMALIZED, "--proxy", "{empty}"), "{empty}: holds no images"),
        ((*NORMALIZED, "--proxy", "{torn}"), "b.png: cannot be read as an image"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    words: tuple[str, ...], said: str, model: Path, photographs: Path, tmp_path: Path
) -> None:
    places = {"photographs": photographs} | {name: tmp_path / name for name in ("empty", "torn")}
    for name in ("empty", "torn"):
        places[name].mkdir()
    (places["torn"] / "b.png").write_bytes((photographs / "00.png").read_bytes()[:200])
    asked = [word.format(**places) for word in words]
    done = zaq_here("quantize", model, *QUICK, *asked, "-o", tmp_path / "out")
    assert done.exit_code == 2 and said.format(**places) in done.stderr, done.stderr
    assert done.stderr.count("zaq: ") == 1 and not (tmp_path / "out").exists()
