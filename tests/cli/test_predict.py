"""`zaq predict`, as a user calls it: what each kind of network says of photographs, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import zaq_here
from foreign import SSD, YOLO, half, negative, segmenter, ssd, yolo
from PIL import Image

from zaq.export.session import run_session, session
from zaq.run import Run
from zaq.sources import load

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def drawn(path: Path, size: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    """A photograph of smooth colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def said(*args: object) -> list[dict[str, Any]]:
    done = zaq_here("predict", *args, "--json")
    assert done.exit_code == 0, done.output
    return list(json.loads(done.stdout))


def refused(*args: object) -> str:
    done = zaq_here("predict", *args)
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    return " ".join(done.stderr.split())


def test_names_are_in_card_file_and_folder(run: Path) -> None:
    assert Run(run).card().class_names == tuple(NAMES) and (run / "labels.txt").read_text().splitlines() == NAMES
    file = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(file.get_modelmeta().custom_metadata_map["zaq.classes"]) == NAMES


def test_as_many_names_as_classes(model: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    done = zaq_here("quantize", "--labels", tmp_path / "few.txt", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "2 names for 10 classes" in done.stderr, done.output
    done = zaq_here("quantize", model, "--labels", tmp_path / "few.txt", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "2 class names" in done.stderr and "tells 5 classes apart" in done.stderr
    assert not (tmp_path / "out").exists()


def test_classes_by_name_and_the_float_network_beside(run: Path, tmp_path: Path) -> None:
    """Both are asked what the photograph is as the card prepares it, and are told of by their probabilities."""
    photos = [drawn(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    images = (
        Run(run)
        .card()
        .normalised(torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in photos])).permute(0, 3, 1, 2))
    )
    ours = torch.from_numpy(run_session(session(run / "model.onnx"), images)[0]).softmax(1)
    with torch.no_grad():
        theirs = load("zoo:resnet20_cifar10").graph(images).softmax(1)
    for i, one in enumerate(said(run, *photos, "--top", 2)):
        assert one["image"] == str(photos[i]) and len(one["quantized"]["classes"]) == 2
        for name, wanted in (("quantized", ours[i]), ("float", theirs[i])):
            best = one[name]["classes"][0]
            assert best["number"] == int(wanted.argmax()) and best["name"] == NAMES[best["number"]]
            assert best["probability"] == pytest.approx(float(wanted.max()), abs=1e-3)
    done = zaq_here("predict", run, photos[0])
    assert done.exit_code == 0 and NAMES[int(ours[0].argmax())] in done.stdout and "float" in done.stdout, done.output


def test_a_file_alone_and_a_photograph_turned_by_its_phone(run: Path, tmp_path: Path) -> None:
    """A larger photograph, stored on its side: EXIF says how to turn it."""
    path, turned, exif = drawn(tmp_path / "photo.png", (64, 64)), tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.open(path).rotate(90).save(turned, exif=exif)
    plain, upright = said(run / "model.onnx", path, turned)
    assert plain["quantized"] == upright["quantized"] and "float" not in plain


@pytest.mark.parametrize("kind", ["yolo", "ssd"])
def test_boxes_are_counted_and_drawn_in_pixels_of_the_photograph(kind: str, tmp_path: Path) -> None:
    """Found where there is red, the left half of the photograph; by either kind of head."""
    path = {"yolo": yolo, "ssd": ssd}[kind](tmp_path / f"{kind}.onnx")
    (tmp_path / "decode.json").write_text(json.dumps({"yolo": YOLO, "ssd": SSD}[kind]))
    flags = ("--task", "detection", "--decode", tmp_path / "decode.json", "--normalize", "0-1")
    (found,) = said(path, half(tmp_path), *flags, "-o", tmp_path / "drawn")
    boxes = found["quantized"]["boxes"]
    assert [b["name"] for b in boxes] == ["dog", "dog"] and boxes[0]["score"] > 0.99
    assert sorted(b["box"] for b in boxes) == [[8, 0, 24, 16], [8, 16, 24, 32]]  # (4, 8) of 16 pixels, twice as tall
    over, photo = (np.asarray(Image.open(p)) for p in (tmp_path / "drawn" / "half.png", tmp_path / "half.png"))
    assert over.shape == photo.shape and (over != photo).any(-1)[:, 8:25].any()
    assert "half.png: exists already" in refused(path, tmp_path / "half.png", *flags, "-o", tmp_path / "drawn")
    assert not said(path, tmp_path / "half.png", *flags, "--score", 1)[0]["quantized"]["boxes"]
    assert "none" in zaq_here("predict", path, tmp_path / "half.png", *flags, "--score", 1).stdout


def test_masks_cover_what_the_network_saw(tmp_path: Path) -> None:
    """Red told from black, on the middle square of the photograph."""
    path = segmenter(tmp_path / "seg.onnx")
    (tmp_path / "labels.txt").write_text("black\nred\n")
    flags = ("--task", "segmentation", "--normalize", "0-1", "--labels", tmp_path / "labels.txt", "--crop", 16)
    (found,) = said(path, half(tmp_path), *flags, "-o", tmp_path / "drawn")
    assert found["quantized"]["pixels"] == {"black": 0.5, "red": 0.5}
    over = np.asarray(Image.open(tmp_path / "drawn" / "half.png"))
    assert over.shape == (32, 32, 3) and (over[20:, 18:] == 0).all() and (over[20:, :14] != (255, 0, 0)).any(-1).all()
    table = zaq_here("predict", path, tmp_path / "half.png", *flags).stdout
    assert "red" in table and "50.0 %" in table


def test_images_come_out_as_they_went_in(tmp_path: Path) -> None:
    """A network that turns its image upside down in value: white becomes black."""
    path = negative(tmp_path / "negative.onnx")
    flags = ("--task", "image", "--normalize", "-1-1")
    assert said(path, half(tmp_path), *flags, "-o", tmp_path / "made")[0]["quantized"] == {"height": 16, "width": 16}
    made = np.asarray(Image.open(tmp_path / "made" / "half.png"))
    assert (made[:, :7] == (0, 255, 255)).all() and (made[:, 9:] == 255).all()
    assert "no image in colour or grey" not in refused(path, tmp_path / "half.png", "--task", "image")
    assert "the model's normalisation is unknown" in refused(path, tmp_path / "half.png", "--task", "image")
    assert "classification needs one output (N, classes)" in refused(path, tmp_path / "half.png", *flags[2:])


def test_embeddings_are_compared(run: Path, tmp_path: Path) -> None:
    path = drawn(tmp_path / "photo.png")
    (found,) = said(run, path, "--task", "embedding")
    ours, theirs = (np.array(found[name]["vector"]) for name in ("quantized", "float"))
    table = zaq_here("predict", run, path, "--task", "embedding").stdout
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert float(table.split("cosine with float")[1].split()[0]) == pytest.approx(cosine, abs=1e-4)


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    path = drawn(tmp_path / "photo0.png")
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "short.png").write_bytes(path.read_bytes()[:200])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo0.png").write_bytes(path.read_bytes())
    assert "notes.png: cannot be read as an image" in refused(run, tmp_path / "notes.png")
    assert "short.png: cannot be read as an image" in refused(run, tmp_path / "short.png")
    assert "nothing.png: not found" in refused(run, tmp_path / "nothing.png")
    assert "is a folder; name its images" in refused(run, tmp_path)
    assert "is no run of zaq quantize" in refused(tmp_path, path)
    assert "is no run of zaq quantize" in refused(tmp_path / "nowhere", path)
    assert "neither a run of zaq quantize nor an .onnx file" in refused(path, path)
    assert "Missing argument 'PHOTO...'" in refused(run)
    assert "Did you mean 'detection'?" in refused(run, path, "--task", "detektion")
    assert "nothing to draw of --task classification" in refused(run, path, "-o", tmp_path / "drawn")
    twice = refused(run, path, tmp_path / "other" / "photo0.png", "-o", tmp_path / "drawn", "--task", "image")
    assert "would both be written to" in twice
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    assert "2 names for 10 classes" in refused(run, path, "--labels", tmp_path / "labels.txt")
