"""`zaq compare` on runs of a toy, and what `zaq eval` leaves for it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import zaq_here
from PIL import Image

from zaq.comparison import Figure, compared
from zaq.run import Run


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same toy at 8 and at 3 bits."""
    folder = tmp_path_factory.mktemp("compared")
    for bits in ("w8a8", "w3a8"):
        done = zaq_here("quantize", model, "--bits", bits, "--method", "rtn", "--normalize", "0-1", "-o", folder / bits)
        assert done.exit_code == 0, done.output
    return folder / "w8a8", folder / "w3a8"


@pytest.fixture(scope="module")
def data(runs: tuple[Path, Path]) -> str:
    """Pictures of noise, which the toy has some answer to."""
    channels, height, width = Run.open(runs[0]).card().input
    folder = runs[0].parent / "data"
    for label in range(5):
        (folder / str(label)).mkdir(parents=True)
        noise = np.random.default_rng(label).integers(0, 256, (height, width, channels), np.uint8)
        Image.fromarray(noise).save(folder / str(label) / "0.png")
    return f"folder:{folder}"


def told(*args: object) -> dict[str, Any]:
    done = zaq_here("compare", *args, "--json", "--overwrite")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_differs_is_told_and_nothing_else(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = told(*runs, "-o", tmp_path / "page.html")
    assert found["options"]["bits"] == ["w8a8", "w3a8"] and found["options"]["qconfig.weight_bits"] == ["8", "3"]
    assert set(found["options"]) == {"bits", "qconfig.weight_bits"}
    sqnr = {name: [v["sqnr"] for v in values] for name, values in found["layers"].items()}
    apart = [max(v) - min(v) for v in sqnr.values() if None not in v]
    assert apart == pytest.approx(sorted(apart, reverse=True)) and apart[0] > 10 > apart[-1]
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert found["figures"]["times as fast as float"] == [r["speed"]["times"] for r in reports]
    sizes = found["figures"]["model.onnx, KB"]
    assert sizes == pytest.approx([(run / "model.onnx").stat().st_size / 1024 for run in runs])


def test_the_page_links_to_the_reports_from_where_it_lies(runs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    page.parent.mkdir()
    done = zaq_here("compare", *runs, "-o", page)
    assert done.exit_code == 0 and "w8a8" in done.output and str(page) in done.output, done.output
    links = re.findall(r'href="([^"]*report\.html)"', page.read_text())
    assert [(page.parent / link).resolve() for link in links] == [run / "report.html" for run in runs]
    assert "http://" not in page.read_text() and "★" in page.read_text()
    again = zaq_here("compare", *runs, "-o", page)
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_what_eval_measured_stands_beside(runs: tuple[Path, Path], data: str, tmp_path: Path) -> None:
    measured = []
    for limit in (5, 5, 3):  # the same again takes the place of what was there
        done = zaq_here("eval", runs[0], "--data", data, "--limit", limit, "--json")
        assert done.exit_code == 0, done.output
        measured.append(json.loads(done.stdout)["top1"])
    figures = told(*runs, "-o", tmp_path / "page.html")["figures"]
    assert figures[f"top1, {data}, first 5"] == [measured[1], None]
    assert figures[f"top1, {data}, first 3"] == [measured[2], None]
    assert len(Run.open(runs[0]).measured()) == 2


def test_what_was_measured_of_another_file_is_not_told(runs: tuple[Path, Path], data: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    assert zaq_here("eval", copy, "--data", data).exit_code == 0 and Run.open(copy).measured()
    (copy / "model.onnx").write_bytes((runs[1] / "model.onnx").read_bytes())
    assert not Run.open(copy).measured()
    (copy / "eval.json").write_text('[{"sha256": 1}, 5')
    assert not Run.open(copy).measured()


def test_names_are_text(runs: tuple[Path, Path], tmp_path: Path) -> None:
    strange = tmp_path / "<script>alert(1)<"
    shutil.copytree(runs[1], strange)
    report = json.loads((strange / "report.json").read_text())
    report["options"]["source"]["name"] = "<b>net"
    report["tensors"][0]["name"] = "<i>x"
    del report["speed"], report["estimate"], report["sizes"], report["stages"]  # as an older zaq wrote it
    (strange / "report.json").write_text(json.dumps(report))
    done = zaq_here("compare", strange, runs[0], "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (
        done.exit_code == 0 and "<script>alert" not in page and "&lt;script&gt;alert" in page and "<b>net" not in page
    )


def test_other_models_are_told_of(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    report = json.loads((other / "report.json").read_text())
    report["options"]["source"] |= {"sha256": "0" * 64}
    (other / "report.json").write_text(json.dumps(report))
    assert compared([*runs, other]).unlike and not compared(runs).unlike
    done = zaq_here("compare", *runs, other, "-o", tmp_path / "page.html")
    assert "they are of different models" in done.output and "different models" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("args", "said"), [
    (["A"], "two runs are the least"),
    (["A", "A"], "is named twice"),
    (["A", "EMPTY"], "is no run of zaq quantize with a report"),
    (["A", "BROKEN"], "is not what zaq quantize wrote"),
])  # fmt: skip
def test_what_cannot_be_compared_is_a_sentence(
    runs: tuple[Path, Path], tmp_path: Path, args: list[str], said: str
) -> None:
    for name in ("EMPTY", "BROKEN"):
        (tmp_path / name).mkdir()
    (tmp_path / "BROKEN" / "report.json").write_text('{"options": 5}')
    done = zaq_here("compare", *(runs[0] if a == "A" else tmp_path / a for a in args), "-o", tmp_path / "page.html")
    assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "page.html").exists(), done.output


def test_the_best_is_the_best_of_those_that_differ() -> None:
    assert Figure("x", (1.0, 2.0, None), better=1).best() == [False, True, False]
    assert Figure("x", (1.0, 2.0), better=-1).best() == [True, False]
    assert Figure("x", (1.01, 1.02), better=1).best() == [False, False]  # the same as it is written
    assert Figure("x", (1.0, 2.0)).best() == [False, False]
