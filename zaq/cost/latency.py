"""How fast files are in onnxruntime, side by side: what the machine does meanwhile hits all of them alike."""

import collections
import contextlib
import itertools
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from zaq.config.files import scratch
from zaq.cost.deployment import forms_of
from zaq.engine.progress import Progress
from zaq.export.ends import declare
from zaq.export.session import batch_of, feed, session

__all__ = [
    "FLOAT", "SLOWER", "STATIC_INT8", "Latency", "contenders", "measure", "speed", "speed_sentence", "static_int8",
    "table",
]  # fmt: skip

FLOAT, OURS, STATIC_INT8 = "float", "ours", "onnxruntime int8"
GLANCE = 0.5  # seconds
SLOWER = 0.95  # times as fast as float: below, it is slower, and not by chance
CALIBRATION_BATCH = 16
SLICES = 10  # a setting's time is spent in as many parts, the other settings between them
# seconds: a fast file runs some times on end, as it would where it is deployed, its weights still in the cache
TURN = 0.01


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run of a file at a batch and a number of threads; `speedup`: float's median over this one."""

    name: str
    batch: int
    threads: int
    median: float
    low: float  # the 10th percentile
    high: float  # the 90th
    runs: int
    speedup: float | None  # None where no file is called `float`

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def speed(plain: bytes, file: Path, image: tuple[int, ...]) -> dict[str, Any]:
    """One image on one thread, as goes into report.json: milliseconds of the float file `plain` and of our file,
    and how many times as fast ours is. The files take turns for `GLANCE` seconds: as much as a warning needs."""
    base, ours = measure({FLOAT: plain, OURS: file}, (1,), (1,), GLANCE, image=image)
    assert ours.speedup is not None
    return {"float": base.median, "ours": ours.median, "times": ours.speedup, "batch": 1, "threads": 1}


def speed_sentence(found: dict[str, Any]) -> str:
    """What is said of `speed`: a file that is slower than the float network is never passed over in silence."""
    slower = "SLOWER than the float network: " if found["times"] < SLOWER else ""
    return (
        f"{slower}{found['times']:.2f} times as fast as the float network in onnxruntime here: {found['ours']:.3g} ms "
        f"an image on one thread, float {found['float']:.3g}"
    )


def table(rows: list[Latency]) -> list[list[str]]:
    """Rows of text; the first row is the head."""
    head = ["file", "batch", "threads", "median ms", "10 to 90 %", "runs", "times as fast as float"]
    return [head] + [
        [
            r.name,
            str(r.batch),
            str(r.threads),
            f"{r.median:.3f}",
            f"{r.low:.3f} to {r.high:.3f}",
            str(r.runs),
            _ratio(r),
        ]
        for r in rows
    ]


def _ratio(row: Latency) -> str:
    return "" if row.speedup is None else f"{row.speedup:.2f}"


def measure(
    files: dict[str, Path | bytes],
    batches: tuple[int, ...] = (1, 32),
    threads: tuple[int, ...] = (1, 2),
    seconds: float = 5.0,
    progress: Progress | None = None,
    image: tuple[int, ...] = (),
) -> list[Latency]:
    """Time every file at every batch and number of threads, `seconds` a setting and at least `SLICES` runs; on an
    `image` of (C, H, W) where it takes any size.

    The files take turns of `TURN` or one run in one process, on the same noise. Raises SourceError for what onnxruntime
    cannot load.
    """
    sessions = {(name, t): _any_batch(file, t) for name, file in files.items() for t in threads}
    feeds = {(name, b): _noise(sessions[name, threads[0]], b, image) for name in files for b in batches}
    settings = list(itertools.product(batches, threads))
    times: dict[tuple[str, int, int], list[float]] = {(name, b, t): [] for b, t in settings for name in files}
    for name, b, t in times:
        sessions[name, t].run(None, feeds[name, b])  # memory is planned in the first run
    order = collections.deque(files)
    for step in (progress or Progress()).track("latency", SLICES * len(settings)):
        b, t = settings[step % len(settings)]
        deadline = time.perf_counter() + seconds / SLICES
        while True:
            order.rotate()  # who runs after whom is nobody's advantage
            for name in order:
                times[name, b, t] += _turn(sessions[name, t], feeds[name, b])
            if time.perf_counter() >= deadline:
                break
    return [_row(*setting, found, times.get((FLOAT, *setting[1:]))) for setting, found in times.items()]


def _row(name: str, batch: int, threads: int, found: list[float], base: list[float] | None) -> Latency:
    low, median, high = (float(v) for v in np.percentile(found, (10, 50, 90)))
    return Latency(
        name, batch, threads, median, low, high, len(found), float(np.median(base)) / median if base else None
    )


def _turn(run: ort.InferenceSession, feed: dict[str, NDArray[Any]]) -> list[float]:
    """Milliseconds of the runs that one turn has room for, at least one."""
    found: list[float] = []
    while sum(found) < 1000 * TURN:
        start = time.perf_counter()
        run.run(None, feed)
        found.append(1000 * (time.perf_counter() - start))
    return found


def contenders(plain: bytes, path: Path, samples: Tensor | None, folder: Path) -> dict[str, Path | bytes]:
    """What a file of ours is measured against: its float form `plain` and onnxruntime's static int8 of that, written
    into `folder`; and every form of it that lies beside it. Without samples noise calibrates, which is as fast, and
    good for nothing else.
    """
    (folder / "float.onnx").write_bytes(plain)
    if samples is None:
        (noise,) = _noise(session(plain), CALIBRATION_BATCH).values()
        samples = torch.from_numpy(noise)
    static_int8(folder / "float.onnx", samples, folder / "int8.onnx")
    return {FLOAT: plain, **{p.name: p for p in forms_of(path)}, STATIC_INT8: folder / "int8.onnx"}


def static_int8(float_model: Path, samples: Tensor, out: Path) -> None:
    """onnxruntime's own static quantization of a float file: QDQ, int8 weights per channel, uint8 activations.

    Transposed convolutions stay in float: its weights per channel fail there.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load(float_model).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(samples.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.contiguous().numpy()}

    with scratch() as folder, _quiet():
        prepared = folder / "prepared.onnx"
        quant_pre_process(
            float_model, prepared, skip_symbolic_shape=True
        )  # which fails on detectors; convolutions need none
        transposed = [n.name for n in onnx.load(prepared).graph.node if n.op_type == "ConvTranspose" and n.name]
        quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=transposed,
        )


def _any_batch(file: Path | bytes, threads: int) -> ort.InferenceSession:
    """A file in onnxruntime; one of a fixed batch without that, for nothing in it depends on it."""
    run = session(file, threads)
    if batch_of(run) is None:
        return run
    model = onnx.load_model_from_string(file if isinstance(file, bytes) else file.read_bytes())
    declare(model, "batch")
    return session(model.SerializeToString(), threads)


def _noise(run: ort.InferenceSession, batch: int, image: tuple[int, ...] = ()) -> dict[str, NDArray[Any]]:
    (value,) = run.get_inputs()
    shape = [s if isinstance(s, int) else image[i] for i, s in enumerate(value.shape[1:])]
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32))
    return feed(run, noise)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's remarks on how it should be called."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
