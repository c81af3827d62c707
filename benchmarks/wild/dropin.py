"""Does a package's own code run on our file in place of the one that it ships, and what does it say then?

    pip install --target /tmp/wild --no-deps rapidocr-onnxruntime nudenet opencv-python-headless
    pip install --target /tmp/wild --no-deps pyclipper shapely six tqdm
    PYTHONPATH=/tmp/wild python benchmarks/wild/dropin.py rec cls detector --runs /tmp/wild-runs

Each file that a package ships is quantized by `rtn` at w8a8 as its user would, without being told how images are
normalised by more than a flag, into a folder of --runs (a run that is there is used), and handed to the package, which
reads its alphabet, its names and its sizes from it. Printed: what the package answers with its own file, and with ours.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

LINES = ("Quantized 2026", "without data", "ONNX 8 bit")


class Case(NamedTuple):
    """A file of a package, how it is quantized, and the package's own code on a file: JSON of what it answers."""

    package: str
    file: str
    flags: tuple[str, ...]
    answer: Callable[[Path], Any]


def drawn(text: str, width: int, height: int = 48) -> Any:
    """A line of text, black on white, (height, width, 3) uint8."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((8, 6), text, "black", ImageFont.load_default(30))
    return np.asarray(image)


def read_lines(path: Path) -> Any:
    """rapidocr's reader on lines of two widths, each alone, so that each has a batch of a width of its own."""
    engine = importlib.import_module("rapidocr_onnxruntime").RapidOCR(rec_model_path=str(path))
    answers = [engine(drawn(line, width), use_det=False, use_cls=False)[0] for line in LINES for width in (320, 480)]
    return [text[0] for found in answers for text in found]


def read_direction(path: Path) -> Any:
    """rapidocr's classifier on lines as they are, and turned upside down."""
    engine = importlib.import_module("rapidocr_onnxruntime").RapidOCR(cls_model_path=str(path))
    lines = [drawn(line, 192) for line in LINES]
    answers = [engine(i, use_det=False, use_cls=True, use_rec=False)[0] for x in lines for i in (x, x[::-1, ::-1])]
    return [text[0] for found in answers for text in found]


def find_boxes(path: Path) -> Any:
    """nudenet's detector on a picture of nothing it knows: what counts is that its code runs."""
    found = importlib.import_module("nudenet").NudeDetector(model_path=str(path)).detect(drawn(LINES[0], 320, 320))
    return [box["class"] for box in found]


OCR = "rapidocr_onnxruntime"
CASES = {
    "rec": Case(OCR, "models/ch_PP-OCRv4_rec_infer.onnx", ("--input-shape", "3,48,320"), read_lines),
    "cls": Case(OCR, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", ("--input-shape", "3,48,192"), read_direction),
    "detector": Case("nudenet", "320n.onnx", ("--input-shape", "3,320,320", "--normalize", "unit"), find_boxes),
}
CENTRED = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")  # of PaddleOCR


def shipped(case: Case) -> Path | None:
    """The file in the installed package; None where it is not installed."""
    spec = importlib.util.find_spec(case.package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) / case.file if folders else None


def quantized(case: Case, file: Path, folder: Path) -> Path:
    """Our file in a run folder, made if it is not there. Raises what the command line says against it."""
    if not (folder / "model.onnx").is_file():
        from zaq.cli import main as zaq

        flags = case.flags + (CENTRED if case.package == OCR else ())
        zaq(
            ["quantize", str(file), *flags, "--bits", "w8a8", "--method", "rtn", "-o", str(folder)],
            standalone_mode=False,
        )
    return folder / "model.onnx"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(CASES)))
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Folder for the runs.")
def main(names: tuple[str, ...], runs: Path) -> None:
    """Run NAMES, all by default, and print what the packages answer."""
    for name in names or tuple(CASES):
        case = CASES[name]
        file = shipped(case)
        if file is None:
            click.echo(f"{name}: {case.package} is not installed")
            continue
        wanted, found = case.answer(file), case.answer(quantized(case, file, runs / name))
        click.echo(f"{name}: {'alike' if wanted == found else 'other'}")
        click.echo(f"  theirs {json.dumps(wanted, ensure_ascii=False)}")
        click.echo(f"  ours   {json.dumps(found, ensure_ascii=False)}")


if __name__ == "__main__":
    main()
