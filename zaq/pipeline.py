"""What `zaq quantize` does around the method: the run directory, the file, its verification, the report."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zaq import __version__
from zaq.api import quantize_graph, teacher_of
from zaq.compute.processes import is_first
from zaq.config.bits import QConfig
from zaq.data import shuffled
from zaq.data.photographs import photographs_in
from zaq.engine.images import IMAGES
from zaq.engine.interruption import ctrl_c_waits
from zaq.engine.journal import Log
from zaq.engine.progress import Progress
from zaq.engine.snapshot import Snapshots, run_of
from zaq.engine.work import Work
from zaq.errors import BitsError, Interrupted
from zaq.report import facts as reporting
from zaq.report.outputs import require_a_student
from zaq.run import SNAPSHOTS, Run, beside, disk_errors
from zaq.sources import Source
from zaq.synth.adapter import Photographs

__all__ = ["MOVABLE", "Keeping", "call_of", "quantize_run"]

FT_BATCH = 64
MOVABLE = ("device", "devices", "num_nodes")  # a run may go on, and be repeated, with others


@dataclass(frozen=True)
class Keeping:
    """How a run is kept while it lasts. `call` is what it was asked for, in the caller's own words, for `call_of`;
    `memory` what may be kept of its images and features in memory, as `zaq.quantize` takes it.
    """

    every: float = 60.0  # seconds between snapshots inside a stage
    resume: bool = False
    call: dict[str, Any] = field(default_factory=dict)
    memory: int | str | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """Of the call what another run repeats by it, wherever that is (`zaq quantize --config`)."""
        return {name: value for name, value in self.call.items() if name not in MOVABLE}


def quantize_run(
    model: Source,
    qconfig: QConfig,
    method: Any,
    effort: str,
    seed: int,
    folder: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
    data: str | None = None,
    keeping: Keeping | None = None,
    samples: Path | None = None,
    work: Work | None = None,
    generator: Path | None = None,
    proxy: Path | None = None,
) -> dict[str, Any]:
    """Quantize a loaded model into a run directory and return the report. See `zaq.run` for what lies there after.

    `data` is for a method that reads real images, which is `ft` alone; the report says so. `samples` is a run of the
    same model, whose images are learned from. `work` says where and how the student learns. `generator` is a file of
    `zaq cocktail`, or a run, with whose weights synthesis begins. `proxy` is a folder of photographs, which the recipe
    alone learns from; the report says so, too.
    The run is kept in snapshots, so that nothing computed is lost if a later step fails or the process is killed.

    Raises:
        OutputError: for a folder that cannot be written, or holds a run.
        BitsError: for `keeping.resume` with other options than the run's; for `samples` or a `generator` with a method
            that takes none; for less memory than a batch of images takes.
        SourceError: for `samples` of another model; for a `generator` that is none.
        DataError: for photographs that cannot be read, and for too few.
        Interrupted: where Ctrl-C came while files were written; they are whole.
        RunError: once all is written, for a student that is none (`zaq.report.outputs`).
    """
    progress, keeping, work = progress or Progress(), keeping or Keeping(), work or Work()
    photographs = photographs_in(proxy, teacher_of(model.graph, model.card)[1], progress) if proxy else None
    learn = partial(
        quantize_graph,
        model.graph,
        qconfig,
        method,
        card=model.card,
        effort=effort,
        seed=seed,
        source={"name": model.name, "sha256": model.sha256},
        real=shuffled(data, model.card, FT_BATCH, seed) if data and method.reads_data else None,
        notes=model.notes,
        samples=samples,
        generator=generator,
        photographs=photographs,
        work=work,
        memory=keeping.memory,
    )
    if not is_first():  # its share of the work, and nothing is written; the stage that keeps images is one of all
        snapshots = None if method.reads_data else Snapshots(Path(), {})
        return learn(snapshots=snapshots, keep=lambda content: None).report
    with Run.building(folder, overwrite, keeping.resume) as run:
        log = Log(run / "log.jsonl")
        asked = _asked(model, qconfig, method, effort, seed, samples, work, generator, photographs)
        snapshots = _snapshots(asked, method, run, keeping, progress)
        with disk_errors(run.path):  # the log grows with every step
            quantized = learn(
                progress=progress,
                log=log,
                snapshots=snapshots,
                trial=True,
                keep=lambda content: run.write(IMAGES, content),
                folder=run.path,
            )
        said = quantized.report["options"]
        said |= {"data": data or said["data"], "call": keeping.asked}
        with ctrl_c_waits(progress.say) as came:
            quantized = replace(quantized, interface=model.interface, frame=model.frame)
            report = quantized.write(run, progress)
            run.finish(snapshots=report["interrupted"])
    if came:
        raise Interrupted(f"interrupted while it was saved; the run in {folder}/ is whole.")
    require_a_student(report, f"{folder}/model.onnx")
    return report


def _asked(
    model: Source,
    qconfig: QConfig,
    method: Any,
    effort: str,
    seed: int,
    samples: Path | None,
    work: Work,
    generator: Path | None,
    photographs: Photographs | None = None,
) -> dict[str, Any]:
    """What a run has to be begun with, and gone on with, for its student to be the same."""
    return {
        "source": {"name": model.name, "sha256": model.sha256},
        "bits": qconfig,
        "method": reporting.method_dict(method),
        "effort": effort,
        "seed": seed,
        "card": model.card,
        "precision": work.precision,
        "threads": torch.get_num_threads(),
        "version": [__version__, torch.__version__],
        "samples": str(samples) if samples else None,
        "generator": str(generator) if generator else None,
        "proxy": _hashed(photographs) if photographs else None,
    }


def _hashed(photographs: Photographs) -> str:
    """Which photographs they are: their folder, and the start of a hash of all their pixels."""
    return f"{photographs.place} ({hashlib.sha256(photographs.pixels.numpy().tobytes()).hexdigest()[:12]})"


def _snapshots(asked: dict[str, Any], method: Any, run: Run, keeping: Keeping, progress: Progress) -> Snapshots | None:
    """Where a run goes on from, and leaves more. Raises BitsError where what is there is of other options."""
    if method.reads_data:
        if keeping.resume:
            raise BitsError(f"--resume: --method {method.name} reads images in an order of their own; it begins anew.")
        return None
    if keeping.resume:
        _same(asked, run)
    return Snapshots(run / SNAPSHOTS, asked, keeping.every, progress.say, keeping.call)


def _same(asked: dict[str, Any], run: Run) -> None:
    """Raise BitsError if a run that is to go on was begun with other options: what came out would be neither."""
    begun, _ = run_of(run / SNAPSHOTS) or (asked, {})
    for name, value in asked.items():
        if begun.get(name) != value:
            raise BitsError(
                f"--resume: the run was begun with another {name}: {_told(begun.get(name))}, not {_told(value)}. "
                "Say the same, or begin anew with --overwrite."
            )


def _told(value: Any) -> str:
    return value["name"] if isinstance(value, dict) and "name" in value else str(value)


def call_of(folder: Path) -> dict[str, Any]:
    """What a run that was broken off was asked for: the `call` of its `Keeping`. Empty where nothing is known."""
    for snapshots in (beside(folder) / SNAPSHOTS, folder / SNAPSHOTS):
        if found := run_of(snapshots):
            return found[1]
    return {}
