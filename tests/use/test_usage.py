"""The programs beside a file do what their first lines say, and tell what Python tells."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import zaq_here
from PIL import Image

from zaq.config.card import Card
from zaq.use.usage import usage_files

MODULES = Path(os.environ.get("NODE_PATH", "/nowhere"))
HEADERS = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
Told = list[tuple[float, str]]  # percent, name


@pytest.fixture(scope="module")
def baked(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in a file that takes bytes."""
    path = tmp_path_factory.mktemp("baked") / "model.nhwc.onnx"
    done = zaq_here("export", run, "--bake-input", "nhwc", "-o", path)
    assert done.exit_code == 0 and "usage.nhwc.py, usage.nhwc.js, usage.nhwc.cpp beside it" in done.output, done.output
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the network's own size, so that no two libraries' ways of resizing come in between."""
    small = np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return path


def told(*command: object, **kwargs: object) -> Told:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, **kwargs)
    assert done.returncode == 0, done.stderr
    return [(float(p), name) for p, name in re.findall(r"^ *([\d.]+) %  (.+)$", done.stdout, re.MULTILINE)]


def alike(found: Told, wanted: Told) -> bool:
    """The same classes in the same order, and percents that differ by no more than how they are rounded."""
    same = [name for _, name in found] == [name for _, name in wanted]
    return same and np.allclose([p for p, _ in found], [p for p, _ in wanted], atol=0.11)


@pytest.fixture(scope="module")
def wanted(run: Path, photo: Path) -> Told:
    """What zaq predict says."""
    lines = zaq_here("predict", run / "model.onnx", photo).stdout
    found = [(float(p), name) for name, p in re.findall(r"^(\w+) +([\d.]+) %", lines, re.MULTILINE)]
    assert len(found) == 5
    return found


def test_python(run: Path, baked: Path, photo: Path, wanted: Told) -> None:
    assert alike(told(sys.executable, run / "usage.py", photo), wanted)
    assert alike(told(sys.executable, baked.with_name("usage.nhwc.py"), photo), wanted)


def test_javascript(run: Path, baked: Path, photo: Path, wanted: Told) -> None:
    if not (shutil.which("node") and (MODULES / "onnxruntime-web").is_dir() and (MODULES / "sharp").is_dir()):
        pytest.skip("node, or the npm packages onnxruntime-web and sharp under NODE_PATH, are not there")
    assert alike(told("node", run / "usage.js", photo), wanted)
    assert alike(told("node", baked.with_name("usage.nhwc.js"), photo), wanted)


def library() -> Path | None:
    """onnxruntime's own shared library, which its Python package carries."""
    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)


def compiled(source: Path, folder: Path) -> Path:
    found = library()
    if not (shutil.which("g++") and found and (HEADERS / "onnxruntime_cxx_api.h").is_file()):
        pytest.skip("g++, onnxruntime's library, or its headers under ONNXRUNTIME_INCLUDE, are not there")
    (folder / "libonnxruntime.so").symlink_to(found)
    (folder / found.name).symlink_to(found)
    (folder / "libonnxruntime.so.1").symlink_to(found)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-isystem{HEADERS}", f"-L{folder}", "-lonnxruntime"]
    done = subprocess.run(
        ["g++", source, *flags, f"-Wl,-rpath,{folder}", "-o", folder / "usage"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "usage"


def test_cpp_of_a_file_that_takes_bytes(baked: Path, photo: Path, wanted: Told, tmp_path: Path) -> None:
    program = compiled(baked.with_name("usage.nhwc.cpp"), tmp_path)
    Image.open(photo).save(tmp_path / "photo.ppm")
    assert alike(told(program, baked, tmp_path / "photo.ppm"), wanted)
    Image.open(photo).resize((16, 16)).save(tmp_path / "small.ppm")
    done = subprocess.run([program, baked, tmp_path / "small.ppm"], capture_output=True, text=True)
    assert done.returncode == 2 and "a binary PPM file of 32 x 32 is expected" in done.stderr


@pytest.mark.slow
def test_cpp_of_a_file_that_takes_floats(run: Path, photo: Path, wanted: Told, tmp_path: Path) -> None:
    program = compiled(run / "usage.cpp", tmp_path)
    Image.open(photo).save(tmp_path / "photo.ppm")
    assert alike(told(program, run / "model.onnx", tmp_path / "photo.ppm"), wanted)


def test_none_is_written_that_could_not_be_right(run: Path) -> None:
    """Nobody knows how the images are normalised, or they are none."""
    file = run / "model.onnx"
    assert usage_files(file, Card(input=(3, 32, 32))) == {}
    assert usage_files(file, Card(input=(3, 32, 32), class_names=("a", "b"))) == {"labels.txt": "a\nb\n"}
    assert usage_files(file, Card(input=(5, 32, 32), mean=(0.5,) * 5, std=(0.5,) * 5)) == {}
    whole = usage_files(file, Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, task="detection"))
    assert sorted(whole) == ["usage.cpp", "usage.js", "usage.py"] and "exp" not in whole["usage.py"]
    compile(whole["usage.py"], "usage.py", "exec")


def test_larger_photographs_are_resized_as_the_card_says(run: Path, tmp_path: Path) -> None:
    """usage.py prepares a photograph as zaq does: shorter side, then the centre."""
    card = Card(input=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, resize=40, crop=32, class_names=("x",) * 10)
    for name, text in usage_files(run / "model.onnx", card).items():
        (tmp_path / name).write_text(text)
    shutil.copy(run / "model.onnx", tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    flags = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--resize", 40, "--crop", 32)
    lines = zaq_here("predict", run / "model.onnx", tmp_path / "photo.png", *flags).stdout
    best = float(re.findall(r"([\d.]+) %", lines)[0])
    assert told(sys.executable, tmp_path / "usage.py", tmp_path / "photo.png")[0][0] == pytest.approx(best, abs=0.11)
