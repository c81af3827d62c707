"""The pipeline: graph in, fold, run the method's stages on a student, and what comes out as one object."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq.config.bits import EFFORTS, QConfig
from zaq.config.card import Card
from zaq.config.memory import allowed, hand_back
from zaq.engine.images import images_in, kept, taken
from zaq.engine.journal import Journal, Log
from zaq.engine.progress import Progress
from zaq.engine.runner import drawing, run_stages
from zaq.engine.snapshot import Content, Snapshots
from zaq.engine.state import State
from zaq.engine.task import NO_BATCH_NORM, Task
from zaq.errors import BitsError, TrainingError, UserError, unknown
from zaq.export.onnx import write_onnx
from zaq.export.trial import require_exportable
from zaq.ir.capture import trace
from zaq.ir.nodes import image_sizes, input_node
from zaq.ir.opening import read_opening
from zaq.ir.sizes import dimensions, open_up
from zaq.methods import Method
from zaq.methods.flagship import Flagship
from zaq.passes.fold import fold
from zaq.quant.edges import weighted_layers
from zaq.quant.student import Student
from zaq.report import facts
from zaq.report.outputs import require_a_student

__all__ = ["Quantized", "quantize", "quantize_graph"]

BYTES = "the input is uint8: its pixels are taken to be 0 to 255"
MODULE = {"name": "module", "sha256": None}  # what is said of a model that came from no file
TRIED = 2  # images that a network is exported on before the work


@dataclass
class Quantized:
    """A quantized model: the state its method left, the journal of how, and the report made of both."""

    state: State
    journal: Journal
    report: dict[str, Any]

    @property
    def module(self) -> GraphModule:
        """The student, to be called like the model it came from."""
        return self.student.module

    @property
    def student(self) -> Student:
        """The student with its quantizers by name."""
        return self.state.student

    @property
    def task(self) -> Task:
        """What was asked; its teacher as the method rewrote it."""
        return self.state.task

    @property
    def teacher(self) -> GraphModule:
        """The float network, folded."""
        return self.task.teacher

    @property
    def card(self) -> Card:
        """What is known of the input."""
        return self.task.card

    def export(self, path: str | Path, form: str = "qdq", opset: int | None = None) -> None:
        """Write the integer ONNX file; its properties hold bits, method, seed, version, source hash and input card.

        Written for the target of its QConfig. `form`, `opset`: see `zaq.export.forms`.
        Raises RunError, once it is written, for a student that is none (`zaq.report.outputs`).
        """
        metadata = facts.onnx_metadata(self.report["options"])
        write_onnx(self.module, Path(path), metadata, form=form, opset=opset, target=self.task.qconfig.runtime)
        require_a_student(self.report, f"{path}")


def quantize(
    model: nn.Module,
    example_input: Tensor | dict[str, Tensor],
    bits: str | QConfig = "w4a4",
    method: Method | None = None,
    *,
    card: Card | None = None,
    effort: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    dynamic: str = "",
    memory: int | str | None = None,
) -> Quantized:
    """Quantize a trained network without data. The model is not changed.

    Args:
        model: in float32; it is copied.
        example_input: (N, C, H, W), normalised as the model expects; its values do not matter, H and W do.
        bits: `w4a4` and the like, 2 to 8; a QConfig says more.
        method: Flagship() by default.
        card: how inputs are normalised (`Card(mean=..., std=...)`); without it they count as already normalised.
        effort: fast, default or best.
        seed: of all random numbers; torch's own random state is left as it was.
        dynamic: `H,W`, or one of them: sizes that stay open in the file, where nothing in the network depends on them;
            the report's notes say where something does.
        memory: bytes of images and features that are kept in memory, also as `2G`; what is more lies in temporary
            files. Half of what is free by default.

    Raises:
        TraceError: for a model that cannot be captured.
        BitsError: for bits, an effort or a method that do not exist; for less memory than a batch of images takes.
    """
    qconfig = QConfig.parse(bits) if isinstance(bits, str) else bits
    fixed: tuple[str, ...] = ()
    if dims := dimensions(dynamic):
        name, x = next(iter(example_input.items())) if isinstance(example_input, dict) else ("", example_input)

        def read(image: tuple[int, ...]) -> GraphModule:
            images = torch.zeros(2, *image, dtype=x.dtype)
            return trace(model, {name: images} if name else images)

        graph, fixed = open_up(read, tuple(x.shape[1:]), dims)
    else:
        graph = trace(model, example_input)
    method, card, notes = method or Flagship(), card or Card(), (*graph.meta["notes"], *fixed)
    return quantize_graph(
        graph,
        qconfig,
        method,
        card=card,
        effort=effort,
        seed=seed,
        progress=progress,
        notes=notes,
        trial=True,
        memory=memory,
    )


def quantize_graph(
    graph: GraphModule,
    qconfig: QConfig,
    method: Method,
    *,
    card: Card,
    effort: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    log: Log | None = None,
    source: dict[str, Any] | None = None,
    real: Iterator[tuple[Tensor, Tensor]] | None = None,
    notes: Iterable[str] = (),
    snapshots: Snapshots | None = None,
    trial: bool = False,
    keep: Callable[[Content], object] | None = None,
    samples: Path | None = None,
    memory: int | str | None = None,
    folder: Path | None = None,
) -> Quantized:
    """Quantize a traced graph; what `quantize` and the command line share.

    `notes`: what the report has to say of the source.
    `real`: endless batches of real images and labels. Only a method that says `reads_data` is handed them.
    `snapshots`: where to go on from, if there is anything, and where to leave more.
    `keep`: is handed the file of what the method draws from the model alone (`engine.images`).
    `samples`: a run of the same model, whose images are taken instead.
    `trial`: export a rounded copy before the method works, so that what has no form in ONNX is refused at once.
    `memory`, `folder`: see `quantize`, and where the files of what does not fit go, if not where temporary ones do.
    """
    _check(method, qconfig, effort, seed)
    started = time.monotonic()
    card = card.override(input=image_sizes(input_node(graph).meta["val"]))
    if method.pictures and len(card.input) != 3:
        raise BitsError(
            f"--method {method.name} learns from images it draws, (N, C, H, W), and the model takes {card.input} of a "
            "sample; rtn, dfq and aciq take any."
        )
    if "stored" in input_node(graph).meta:
        card, notes = card.of_bytes(), (*notes, BYTES)
    card, said = read_opening(graph, card)
    teacher, unfolded = fold(graph)
    if not weighted_layers(teacher):
        raise BitsError("the model has no convolution or linear layer with a weight of its own; nothing to quantize.")
    task = Task(teacher, qconfig, card, effort, seed, getattr(method, "search", method.searches), allowed(memory))
    state, journal = State(task, folder=folder), Journal(progress or Progress(), log or Log())
    journal.notes += [*notes, *said, *unfolded, *_notes(task)]
    if trial:
        with drawing(seed):
            rounded = Student(teacher, qconfig, card, search=False, unlike=task.unlike)
            require_exportable(rounded, teacher, task.noise(TRIED), qconfig.runtime)
        del rounded
        hand_back()
    with drawing(seed):
        stages = method.plan(task, real) if method.reads_data else method.plan(task)
        told = {**(source or MODULE), "card": card}
        if samples is not None:
            stages = taken(stages, images_in(samples, told), method.name, samples)
            journal.notes.append(f"it learns from the images of {samples}")
        elif keep is not None:
            stages = kept(stages, keep, told)
        run_stages(stages, state, journal, snapshots)
        student = state.student
        student.settle()
        student.module.requires_grad_(False)
        if broken := student.broken():
            raise TrainingError(
                f"{broken} of the student is NaN, or a scale that is not positive, after training; "
                "try a smaller step, e.g. -s lr_student=1e-5."
            )
        options = {
            "bits": str(qconfig),
            "target": qconfig.target,
            "qconfig": dataclasses.asdict(qconfig),
            "method": facts.method_dict(method),
            "effort": effort,
            "seed": seed,
            "threads": torch.get_num_threads(),  # sums are added up in another order by another number
            "memory": None if memory is None else task.memory,  # half of what is free is never the same
            "card": card.to_dict(),
            "data": None,
            "samples": str(samples) if samples else None,
            "source": source or MODULE,
        }
        seconds = snapshots.seconds if snapshots else time.monotonic() - started
        report = facts.describe(state, journal, options, minutes=seconds / 60)
    return Quantized(state, journal, report)


def _check(method: Method, qconfig: QConfig, effort: str, seed: int) -> None:
    """Raise BitsError or UserError for what cannot be asked for, whatever the network."""
    if not isinstance(method, Method):
        hint = f"; write {method.__name__}()" if isinstance(method, type) else ""
        raise BitsError(f"method: {method!r} is no zaq.methods.Method{hint}.")
    if effort not in EFFORTS:
        raise BitsError("effort: " + unknown("effort", effort, EFFORTS))
    if not 0 <= seed < 2**63:
        raise UserError(f"seed: {seed} is none; a whole number from 0 to 2^63 - 1 is expected.")
    if qconfig.mixed and not method.mixes:
        raise BitsError(f"--bits {qconfig} goes with --method flagship or zeroq; no other method searches for bits.")


def _notes(task: Task) -> Iterator[str]:
    """What has to be said of a task whatever its method."""
    if not task.batch_norms():
        yield NO_BATCH_NORM
    if not task.card.knows_pixels:
        yield "no mean and std are known: the input counts as already normalised"
    if task.card.order == "bgr":
        yield "the model reads colours as blue, green, red"
    if not task.qconfig.preset.merges:
        placement = task.qconfig.placement
        yield f"placement {placement}: for comparison with published numbers; additions and the image stay in float"
    if task.qconfig.target != "onnxruntime":
        yield f"for {task.qconfig.target}: {task.qconfig.runtime.rule}"
