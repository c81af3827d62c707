"""The command line as a user types it: what it leaves, what it says, how it refuses. Each verb in a process of its own
once; the rest in this one, which has paid for its imports."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import QUICK, ROOT, SYNTHESIS, zaq, zaq_here

from zaq.engine.images import IMAGES
from zaq.export.session import run_session, session
from zaq.run import FILES, MEASURED, Run


def test_a_run_explains_itself(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {*FILES, IMAGES} - {MEASURED}  # which zaq eval leaves
    options = json.loads((run / "options.json").read_text())
    assert options["bits"] == "w4a4" and options["method"]["reconstruct"] == 2 and options["seed"] == 0
    assert options["card"]["classes"] == 10 and len(options["source"]["sha256"]) == 64
    report = json.loads((run / "report.json").read_text())
    assert [s["name"] for s in report["stages"]] == [
        *SYNTHESIS, "calibrate", "squant", "reconstruct", "polish", "zaq", "bias correction",
    ]  # fmt: skip
    weights = [t for t in report["tensors"] if t["kind"] == "weight"]
    assert [w["bits"] for w in weights].count(8) == 2 and all(len(w["scale"]) in (10, 16, 32, 64) for w in weights)
    assert all({"bits", "scale", "zero_point"} <= set(t) for t in report["tensors"])
    assert report["parity"]["top1_agreement"] > 0.98 and not report["parity"]["float_kernels"]
    assert report["sizes"]["model.onnx"] < 0.4 * report["sizes"]["float weights"]
    told = report["estimate"]
    assert told["rounding"]["agreement"] < told["run"]["agreement"] < 1
    assert "xpected on real images like its training ones: the float network" in (run / "report.html").read_text()
    costs = report["deployment"]["files"]
    assert (
        costs["float"]["peak"] > 3 * costs["model.onnx"]["peak"]
        and costs["model.onnx"]["file"] == report["sizes"]["model.onnx"]
    )
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {*SYNTHESIS, "reconstruct", "polish", "zaq"} == {row["stage"] for row in log}
    assert {"loss_g", "loss_q", "held_out"} <= {key for row in log for key in row}
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and page.count("<figcaption>") > 4 and "://" not in page
    assert "real images read</div>" in page and "Real images were read" not in page


def test_the_file_carries_what_it_is(run: Path) -> None:
    properties = {p.key: json.loads(p.value) for p in onnx.load(run / "model.onnx").metadata_props}
    options = json.loads((run / "options.json").read_text())
    assert properties["zaq.source"] == options["source"] and properties["zaq.card"] == options["card"]
    assert {"zaq.bits", "zaq.method", "zaq.seed", "zaq.version"} <= set(properties)


def test_verify(run: Path) -> None:
    done = zaq("verify", run)
    assert done.returncode == 0 and "top-1 agrees on" in done.stdout and "21 QLinearConv" in done.stdout
    found = json.loads(zaq_here("verify", run, "--json").stdout)
    assert found["share_equal"] > 0.9 and found["share_worse"] < 0.05 and found["samples"] == 256


def test_verify_on_real_images_layer_by_layer(run: Path, shared: Path, cifar: str) -> None:
    done = zaq_here("verify", run, "--data", cifar, "--limit", 100, "--layers")
    assert done.exit_code == 0, done.output
    assert f"model.onnx on {cifar}: 100 samples" in done.stdout
    # a tie that falls otherwise in one layer goes on through all behind it, in the checkpoint as in the file
    apart = r"( quantized tensors equal$|.* part first at \w+: 99\.\d+ % equal, 0\.0+ % off by more than one step)"
    assert re.search(r"file against integer arithmetic: \d+ of 40" + apart, done.stdout, re.MULTILINE), done.stdout
    assert "x (8 bits): file 100.0000 %" in done.stdout


def test_export(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "packed.onnx"
    done = zaq("export", run, "--format", "packed", "-o", path)
    assert done.returncode == 0 and "top-1 agrees on" in done.stdout and "21 QLinearConv" in done.stdout, done.stderr
    ours, theirs = (run_session(session(p, 1), Run(run).samples()[:50])[0] for p in (path, run / "model.onnx"))
    assert (ours == theirs).all()
    assert path.stat().st_size < 0.6 * (run / "model.onnx").stat().st_size
    again = zaq_here("export", run, "--format", "packed", "-o", path)
    assert again.exit_code == 2 and "say --overwrite" in again.stderr
    refused = zaq_here("export", run, "--format", "packed", "--opset", 18, "-o", tmp_path / "other.onnx")
    assert refused.exit_code == 2 and "needs 21 or later" in refused.stderr


def test_parts_of_two_runs_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    options = json.loads((run / "options.json").read_text()) | {"seed": 1}
    (tmp_path / "run" / "options.json").write_text(json.dumps(options))
    done = zaq_here("verify", tmp_path / "run")
    assert done.exit_code == 2 and "parts of two runs" in done.stderr, done.stderr
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "foreign", [], [])), tmp_path / "run" / "model.onnx")
    done = zaq_here("verify", tmp_path / "run")
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output


def test_nothing_names_a_file_of_this_machine(run: Path) -> None:
    with zipfile.ZipFile(run / "quantized.pt2") as archive:
        contents = [archive.read(n) for n in archive.namelist()] + [(run / "model.onnx").read_bytes()]
    assert not [c for c in contents if b"site-packages" in c or b'.py"' in c or str(ROOT).encode() in c]


def test_profile(run: Path) -> None:
    done = zaq("profile", run, "--latency", "--seconds", 0)
    assert done.returncode == 0 and "ISSCC 2014" in done.stdout and "onnxruntime int8" in done.stdout, done.stderr
    found = json.loads(zaq_here("profile", run, "--json").stdout)
    assert found == json.loads((run / "report.json").read_text())["deployment"]
    assert found["files"]["model.onnx"]["macs"] == found["files"]["model.onnx"]["integer_macs"] == 40_813_184


def test_eval_needs_no_flags(run: Path, tmp_path: Path) -> None:
    """On images the file itself labels: all right but the half whose labels are moved on by one."""
    from zaq.config.card import Card

    card = Card.from_dict(json.loads((run / "options.json").read_text())["card"])
    raw = np.random.default_rng(0).integers(0, 256, (40, 3073)).astype(np.uint8)
    mean, std = (np.float32(v).reshape(3, 1, 1) for v in (card.mean, card.std))
    pixels = (raw[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / np.float32(255) - mean) / std
    raw[:, 0] = run_session(session(run / "model.onnx"), torch.from_numpy(pixels))[0].argmax(1)
    raw[20:, 0] = (raw[20:, 0] + 1) % 10
    raw.tofile(tmp_path / "test_batch.bin")
    done = zaq("eval", run, "--data", f"cifar10:{tmp_path}")
    assert done.returncode == 0 and "top-1 50.00 %" in done.stdout and "20 of 40 images" in done.stdout


def test_own_model_with_flags_and_json(model: Path, tmp_path: Path) -> None:
    done = zaq(
        "quantize", model, "--bits", "w8a8", *QUICK, "--normalize", "imagenet", "--json", "-q", "-o", tmp_path / "out"
    )
    assert done.returncode == 0 and not done.stderr
    report = json.loads(done.stdout)
    assert report["options"]["card"]["mean"] == [0.485, 0.456, 0.406]
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_without_a_card_the_report_says_so(model: Path, tmp_path: Path) -> None:
    done = zaq_here("quantize", model, *QUICK, "-o", tmp_path / "out")
    assert done.exit_code == 0 and "counts as already normalised" in done.stdout
    done = zaq_here("eval", tmp_path / "out", "--data", f"csv:{tmp_path}")
    assert done.exit_code == 2 and "normalisation is unknown" in done.stderr


@pytest.mark.slow  # so says a run that was killed, too: tests/test_resume.py
def test_the_same_seed_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    """In two processes, one of which has done much else before."""
    assert zaq("quantize", model, *QUICK, "--seed", 5, "-o", tmp_path / "a").returncode == 0
    assert zaq_here("quantize", model, *QUICK, "--seed", 5, "-o", tmp_path / "b").exit_code == 0
    files = []
    for name in ("a", "b"):
        files.append(
            [
                (tmp_path / name / f).read_bytes()
                for f in ("model.onnx", "quantized.pt2", "log.jsonl", "samples.safetensors")
            ]
        )
    assert files[0] == files[1]


def test_dry_run_and_inspect_write_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = zaq_here("quantize", model, "--dry-run", "--bits", "w3a3")
    assert done.exit_code == 0 and "would run" in done.stdout and "net-w3a3/" in done.stdout
    done = zaq_here("inspect", model)
    assert done.exit_code == 0 and "batch norms fold" in done.stdout and "multiply-accumulates" in done.stdout
    facts = json.loads(zaq_here("inspect", model, "--json").stdout)
    # 3x3 convolutions at 16x16 (stem 3-8, two 8-8), at 8x8 (8-16), and a 16-5 linear layer, by hand
    assert facts["macs"] == 9 * (3 * 8 + 2 * 8 * 8) * 256 + 9 * 8 * 16 * 64 + 16 * 5
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_unless_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    done = zaq_here("quantize", model, *QUICK, "-o", tmp_path / "out")
    assert done.exit_code == 2 and "--overwrite" in done.stderr
    assert zaq_here("quantize", model, *QUICK, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(("args", "message"), [
    (["quantize", "--bits", "w9a0"], "2 to 8 are supported"),
    (["quantize", "--bits", "four"], "not of the form w<bits>a<bits>"),
    (["quantize", "--method", "zqa"], "Did you mean 'zaq'?"),
    (["quantize", "--effort", "fats"], "Did you mean 'fast'?"),
    (["quantize", "-s", "gaem=1"], "Did you mean 'game'?"),
    (["quantize", "--method", "zaq", "-s", "alpha=lots"], "'lots' is no float"),
    (["quantize", "--method", "zaq", "-s", "relation=crn"], "Did you mean 'crm'?"),
    (["quantize", "--first-last", "some"], "or 'same'"),
    (["quantize", "no/such/model.pt2"], "there is no such file"),
    (["quantize", "zoo:resnet21_cifar10"], "Did you mean 'resnet20_cifar10'?"),
    (["quantize", "--input-shape", "3,64,64"], "takes inputs of (3, 32, 32)"),
    (["quantize", "--mean", "0.5,0.5,0.5", "--std", "a"], "numbers separated by commas"),
    (["quantize", "--mean", "0.5,0.5,0.5"], "go together"),
    (["quantize", "--normalize", "imagnet"], "Did you mean 'imagenet'?"),
    (["quantise"], "Did you mean 'quantize'?"),
    (["verify", "nowhere"], "there is no such file or folder"),
    (["export", "."], "is no run of zaq quantize"),
    (["export", ".", "--format", "pakced"], "Did you mean 'packed'?"),
    (["quantize", "--target", "tensorrrt"], "Did you mean 'tensorrt'?"),
    (["profile", "."], "is no run of zaq quantize"),
    (["eval", ".", "--data", "cifar10:x"], "is no run of zaq quantize"),
])  # fmt: skip
def test_mistakes_are_a_sentence_and_exit_code_2(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which is quicker; what a process of its own adds is seen by the tests around this one."""
    monkeypatch.chdir(tmp_path)
    done = zaq_here(*args)
    assert done.exit_code == 2 and message in done.stderr, done.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        done = zaq_here("quantize", model, *QUICK, "-o", place)
        assert done.exit_code == 2 and str(tmp_path / "file") in done.stderr and "Traceback" not in done.output


def test_a_run_whose_parts_are_broken(run: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "quantized.pt2", "options.json"):
        folder = tmp_path / name
        folder.mkdir()
        for file in FILES:
            (folder / file).write_bytes((run / file).read_bytes())
        (folder / name).write_bytes(b"junk")
        done = zaq_here("verify", folder)
        assert done.exit_code == 2 and name in done.stderr and "Traceback" not in done.output


def test_help_and_version() -> None:
    assert "quantize" in zaq("--help").stdout and zaq("--version").returncode == 0
    for verb in ("quantize", "inspect", "export", "verify", "profile", "eval", "predict", "demo", "benchmark"):
        assert zaq_here(verb, "--help").exit_code == 0
