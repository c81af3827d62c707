"""The pipeline: graph in, fold, place, run the method, and what comes out as one object."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq.config.bits import EFFORTS, QConfig
from zaq.config.card import Card
from zaq.engine.progress import Progress
from zaq.errors import BitsError, TrainingError, unknown
from zaq.export.onnx import write_onnx
from zaq.ir.capture import trace
from zaq.ir.nodes import input_node
from zaq.methods import reads_data
from zaq.methods.flagship import Flagship
from zaq.methods.job import NO_BATCH_NORM, Job, Log
from zaq.passes.fold import fold
from zaq.quant.edges import weighted_layers
from zaq.quant.placement import make_room
from zaq.report import facts as reporting

__all__ = ["Quantized", "quantize", "quantize_graph"]


@dataclass
class Quantized:
    """A quantized model. `module` is the student, to be called like the model it came from; `report` says what was
    done.
    """

    module: GraphModule
    teacher: GraphModule
    card: Card
    report: dict[str, Any]
    job: Job

    def export(self, path: str | Path, form: str = "qdq", opset: int | None = None) -> None:
        """Write the integer ONNX file; its properties hold bits, method, seed, version, source hash and input card.

        Written for the target of its QConfig. `form`, `opset`: see `zaq.export.forms`.
        """
        metadata, target = reporting.onnx_metadata(self.report["options"]), self.job.qconfig.runtime
        write_onnx(self.module, Path(path), metadata, form=form, opset=opset, target=target)


def quantize(
    model: nn.Module,
    example_input: Tensor | dict[str, Tensor],
    bits: str | QConfig = "w4a4",
    method: Any = None,
    *,
    card: Card | None = None,
    effort: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a trained network without data. The model is not changed.

    example_input: (N, C, H, W), normalised as the model expects; its values do not matter, H and W do.
    bits: `w4a4` and the like, 2 to 8; a QConfig says more. method: Flagship() by default.
    card: how inputs are normalised (`Card(mean=..., std=...)`); without it they count as already normalised.
    Raises TraceError for a model that cannot be captured, BitsError for bits that do not exist.
    """
    qconfig = QConfig.parse(bits) if isinstance(bits, str) else bits
    return quantize_graph(
        trace(model, example_input),
        qconfig,
        method or Flagship(),
        card=card or Card(),
        effort=effort,
        seed=seed,
        progress=progress,
    )


def quantize_graph(
    graph: GraphModule,
    qconfig: QConfig,
    method: Any,
    *,
    card: Card,
    effort: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    log: Log | None = None,
    source: dict[str, Any] | None = None,
    real: Iterator[tuple[Tensor, Tensor]] | None = None,
    notes: Iterable[str] = (),
) -> Quantized:
    """Quantize a traced graph; what `quantize` and the command line share.

    `notes`: what the report has to say of the source.
    `real`: endless batches of real images and labels. Only a method that says `reads_data` is called with them.
    """
    if effort not in EFFORTS:
        raise BitsError("effort: " + unknown("effort", effort, EFFORTS))
    if qconfig.mixed and not getattr(method, "mixes", False):
        raise BitsError(f"--bits {qconfig} goes with --method flagship or zeroq; no other method searches for bits.")
    started = time.monotonic()
    card = card.override(input=tuple(int(d) for d in input_node(graph).meta["val"].shape[1:]))
    teacher, unfolded = fold(graph)
    if not weighted_layers(teacher):
        raise BitsError("the model has no convolution or linear layer with a weight of its own; nothing to quantize.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        job = Job(teacher, qconfig, card, effort, getattr(method, "search", True), progress or Progress(), log or Log())
        job.notes += [*notes, *unfolded]
        if not job.batch_norms():
            job.notes.append(NO_BATCH_NORM)
        if card.normalised:
            job.notes.append("no mean and std are known: the input counts as already normalised")
        if not qconfig.preset.merges:
            job.notes.append(
                f"placement {qconfig.placement}: for comparison with published numbers; additions and the image stay in float"
            )
        if qconfig.target != "onnxruntime":
            job.notes.append(f"for {qconfig.target}: {qconfig.runtime.rule}")
        method(job, real) if reads_data(method) else method(job)
        make_room(job.student)
        job.student.requires_grad_(False)
        _require_finite(job.student)
        options = {
            "bits": str(qconfig),
            "target": qconfig.target,
            "qconfig": dataclasses.asdict(qconfig),
            "method": reporting.method_dict(method),
            "effort": effort,
            "seed": seed,
            "card": card.to_dict(),
            "data": None,
            "source": source or {"name": "module", "sha256": None},
        }
        found = reporting.describe(job, options, minutes=(time.monotonic() - started) / 60)
    return Quantized(job.student, job.teacher, card, found, job)


def _require_finite(student: nn.Module) -> None:
    bad = [k for k, v in student.state_dict().items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise TrainingError(
            f"the student holds NaN in {bad[0]} after training; try a smaller step, e.g. -s lr_student=1e-5."
        )
