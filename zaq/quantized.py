"""A quantized network and all that is done with one: the file, its check, its cost, its score, a run directory."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.bounds import json_text, plain_json, plain_text
from zaq.config.card import Card
from zaq.config.files import scratch
from zaq.config.memory import hand_back
from zaq.config.targets import target_of
from zaq.cost import deployment, latency
from zaq.engine.journal import Journal
from zaq.engine.progress import Progress
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import RunError, SourceError, TrainingError, UserError
from zaq.evaluate import TASKS, Result, measure_batches, task_of
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.ir.capture import from_exported
from zaq.ir.nodes import attribute, open_sizes
from zaq.ir.sizes import WORDS
from zaq.quant.student import Student
from zaq.report import facts
from zaq.report.estimate import estimates
from zaq.report.outputs import require_a_student
from zaq.report.page import render
from zaq.report.tiles import as_html, as_line
from zaq.run import FRAME, NEEDED, TEACHER, Run, write_file
from zaq.sources.base import PLAIN, hash_of
from zaq.sources.interface import Interface
from zaq.use.usage import usage_files
from zaq.verify.layers import SAMPLES, compare_in_parts, fault, summary
from zaq.verify.parity import Parity, compare, compare_sizes

__all__ = ["Learned", "Quantized"]

REPORT = "report.json"
HERE = "onnxruntime"  # the target that can be timed
TRAINED = "trained on in Python, after quantize: what is said of stages, tensors and agreement is of before that"
PYTHON = "whatever it was trained on in Python"  # the data that a report names: nobody knows that it was none


@dataclass(kw_only=True, repr=False)
class Quantized:
    """A quantized network: what `zaq.quantize` returns, and what `zaq.load` reads of a run's folder.

    module: the student, to be called like the model it came from; on images (N, C, H, W), normalised as the card says.
    report: all that is known of how it was made; as in report.json.
    samples: synthetic images (N, C, H, W) that nothing was learned from, where the method has such.
    rows: losses, step by step.
    interface, frame: what files take over from the model's source.
    """

    module: GraphModule
    report: dict[str, Any]
    card: Card
    samples: Tensor | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    interface: Interface = PLAIN
    frame: bytes | None = None
    _made: tuple[str, torch.export.ExportedProgram, ModelProto] | None = None

    @classmethod
    def load(cls, folder: str | Path) -> "Quantized":
        """The network of a run's folder. Raises SourceError for a folder that is none."""
        run = Run.open(Path(folder), (*NEEDED, REPORT))
        try:
            report = plain_json(plain_text(run / REPORT))
            rows = [plain_json(line) for line in plain_text(run / "log.jsonl").splitlines()]
            report["options"] = run.options()
        except (ValueError, TypeError, OSError) as error:
            raise SourceError(f"{folder}: its report or log is not what zaq quantize wrote ({error}).") from error
        samples = run.samples() if (run / "samples.safetensors").is_file() else None
        return Quantized(
            module=run.student(), report=report, card=run.card(), samples=samples, rows=rows,
            interface=run.interface(), frame=run.frame(),
        )  # fmt: skip

    def export(self, path: str | Path, form: str = "qdq", opset: int | None = None) -> None:
        """Write the integer ONNX file; its properties hold bits, method, seed, version, source hash and input card.

        Written for the target of its QConfig. `form`, `opset`: see `zaq.export.forms`.
        Raises TrainingError, before anything is written, for a scale or a weight that no file can hold; RunError, once
        it is written, where onnxruntime does not run it, and for a student that is none (`zaq.report.outputs`).
        """
        content = self._content(form, opset)
        write_file(Path(path), content)
        # Nothing takes the network out of its frame again in onnxruntime's own format, so that file is only loaded.
        framed = form == "ort" and self.frame is not None
        _require_it_runs(Path(path), Path(path) if form == "ort" else content, None if framed else self.card.input)
        require_a_student(self.report, f"{path}")

    def trainable(self) -> GraphModule:
        """See `Learned`. Raises UserError for what was loaded, whose checkpoint holds biases that are rounded."""
        raise UserError("trainable: it was loaded, with biases rounded; only what zaq.quantize returned trains on.")

    def verify(self) -> Parity:
        """The file in onnxruntime against this network, on its synthetic samples.

        Raises RunError for a file that is not this network, UserError where there are no samples.
        """
        if self.samples is None:
            raise UserError("verify: there are no synthetic samples to compare on; the method kept none.")
        with self._file() as path:
            checkpoint = from_exported(self._translated()[0])
            parity = compare(path, checkpoint, self.samples)
            if wrong := fault(path, parity, checkpoint, self.samples):
                raise RunError(wrong)
        return parity

    def profile(self) -> dict[str, Any]:
        """What the file costs, beside the float one: bytes, operations, memory, energy; as `zaq profile --json`."""
        with self._file() as path:
            return deployment.report(deployment.costs(self._float(), path, self.card.input))

    def evaluate(
        self,
        data: str | Iterable[tuple[Tensor, Tensor]],
        task: str | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """How good the file is, in onnxruntime, on labelled images.

        data: `cifar10:DIR` and the like, as `zaq eval` takes them; or batches of images (n, C, H, W), normalised as the
            model expects, and of labels (n,), as a DataLoader gives them.
        task: classification, detection, segmentation or image; the card's by default. Batches are for classification.
        limit: the first images only.

        Raises DataError for data that is not what it should be.
        """
        with self._file() as path:
            if not isinstance(data, str | Path):
                return measure_batches(session(path), data, limit)
            teacher = self.teacher if isinstance(self, Learned) else None
            return TASKS[task_of(self.card, task)](session(path), str(data), self.card, limit, progress, teacher)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a run's folder, as `zaq quantize` does: the file, the checkpoint, report.html, what `zaq.load` reads.

        Raises OutputError for a folder that holds anything, unless `overwrite`, and for one that cannot be written;
        TrainingError and RunError as `export` does.
        """
        self._translated()  # what no file can hold is refused before a folder is made
        with Run.building(Path(folder), overwrite) as run:
            run.write("log.jsonl", "".join(json_text(row) + "\n" for row in self.rows))
            self.write(run)
            run.finish()
        require_a_student(self.report, f"{folder}/model.onnx")

    def program(self) -> torch.export.ExportedProgram:
        """The student as it is stored and exported (`zaq.export.program`)."""
        return program_of(self.module)

    def write(self, run: Run, progress: Progress | None = None) -> dict[str, Any]:
        """Write a run's files but for its log, verified, and return the report."""
        report = self.report
        report["options"]["interface"] = self.interface.to_dict()
        run.write_json("options.json", report["options"])
        (progress or Progress()).say("saving and verifying")
        program = self._translated()[0]
        run.write_program("quantized.pt2", program, report["options"]["data"])
        if self.samples is not None:
            run.write_samples(self.samples, self.card)
        hand_back()
        if self.frame is not None:
            run.write(FRAME, self.frame)
        run.write("model.onnx", self._content(metadata={"parts": run.hashes()}))
        for name, text in usage_files(run / "model.onnx", run.card()).items():
            run.write(name, text)
        if self.samples is not None:
            _compare(run, self, from_exported(program))
        report["sizes"] = _sizes(run, self)
        hand_back()
        report["deployment"] = deployment.report(deployment.costs(self._float(), run / "model.onnx", self.card.input))
        if report["options"]["target"] == HERE:
            report["speed"] = latency.speed(self._float(), run / "model.onnx", self.card.input)
        run.write_json(REPORT, report)
        beside = [path.name for path in run.path.iterdir()]
        run.write("report.html", render(report, self.rows, self.samples, self.card, beside))
        return report

    def _float(self) -> bytes:
        """The same network as a file of floats."""
        return in_form(self._translated()[1], {}, "float")

    def _translated(self) -> tuple[torch.export.ExportedProgram, ModelProto]:
        """The student as a program, and in ONNX's operations; made anew only where a parameter is another."""
        state = hash_of(self.module.state_dict())
        if self._made is None or self._made[0] != state:
            program = self.program()
            self._made = state, program, translate(program)
        return self._made[1:]

    def _content(self, form: str = "qdq", opset: int | None = None, metadata: dict[str, Any] | None = None) -> bytes:
        """A file of a form; `metadata` beside what every file says."""
        options = self.report["options"]
        said = facts.onnx_metadata(options) | (metadata or {})
        target = target_of(options["target"])
        return in_form(self._translated()[1], said, form, opset, target, self.interface, self.frame)

    @contextmanager
    def _file(self) -> Iterator[Path]:
        """The integer file, for as long as it is looked at."""
        with scratch() as folder:
            (folder / "model.onnx").write_bytes(self._content())
            yield folder / "model.onnx"

    def __repr__(self) -> str:
        return as_line(self.report)

    def _repr_html_(self) -> str:
        return as_html(self.report)


@dataclass(kw_only=True, repr=False)
class Learned(Quantized):
    """What `zaq.quantize` returns: with the state that its method left, and the journal of how."""

    model: GraphModule  # the float network as it came
    state: State
    journal: Journal
    _trained: bool = False

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

    def write(self, run: Run, progress: Progress | None = None) -> dict[str, Any]:
        """As above, with the float network, and how often the student will answer as that does."""
        run.write_program(TEACHER, program_of(self.model))
        self.report["estimate"] = estimates(self.model, self.state)
        return super().write(run, progress)

    def trainable(self) -> GraphModule:
        """`module`, ready for an ordinary training loop: weights, biases and scales learn, rounding hands its gradient
        straight through (Bengio et al. 2013), that of a scale is LSQ's (Esser et al. 2020, eq. 3).

        A scale is learned as its logarithm, so that it stays positive whatever the optimizer does. What is exported or
        saved afterwards is what was learned until then, and the report says that it was trained on.
        """
        if not self._trained:
            self._trained = True
            self.student.learn_logarithms()
            self.report["notes"].append(TRAINED)
            read = self.report["options"]["data"]
            self.report["options"]["data"] = f"{read}, and {PYTHON}" if read else PYTHON
        return self.module

    def program(self) -> torch.export.ExportedProgram:
        """As it is stored and exported, with what was learned until now. Raises TrainingError where that is broken."""
        student = self.student.settled() if self._trained else self.student
        if broken := student.broken():
            raise TrainingError(
                f"{broken} of the student is NaN, or a scale that is not positive: no file can hold it. Train what "
                "`trainable()` returns, whose scales stay positive, or with a smaller step."
            )
        return program_of(student.module)


def _require_it_runs(path: Path, file: Path | bytes, image: tuple[int, ...] | None) -> None:
    """Raise RunError for a file that onnxruntime does not load, or does not run on an image of zeros (C, H, W)."""
    try:
        run = session(file)
        if image is not None:
            run_session(run, torch.zeros(1, *image))
    except Exception as error:  # of whatever kind onnxruntime raises
        raise RunError(f"{path}: is written, and onnxruntime does not run it: {error}") from error


def _compare(run: Run, quantized: Quantized, checkpoint: GraphModule) -> None:
    """What the report says of the file beside the student: on the samples, at other sizes, and layer by layer."""
    report, samples, student = quantized.report, run.samples(), quantized.module
    parity = compare(run / "model.onnx", student, samples)
    report["parity"], report["parity_sentence"] = parity.to_dict(), parity.sentence()
    free = open_sizes(student)
    sizes = compare_sizes(run / "model.onnx", student, samples, free)
    report["other_sizes"] = {size: {**p.to_dict(), "sentence": p.sentence()} for size, p in sizes.items()}
    if free:
        words = " and ".join(WORDS[d] for d in free)
        stay = "stay" if len(free) > 1 else "stays"
        said = f"the {words} {stay} open in the file, which is checked at {' and '.join(sizes)} too"
        report["notes"] += [said] if said not in report["notes"] else []
    hand_back()
    layers = compare_in_parts(run / "model.onnx", checkpoint, samples[:SAMPLES])
    wrong = fault(run / "model.onnx", parity, checkpoint, samples)
    report["fault"] = wrong.replace(str(run.path), str(run.place))
    report["layers"], report["layers_summary"] = [dataclasses.asdict(x) for x in layers], summary(layers)


def _sizes(run: Run, quantized: Quantized) -> dict[str, int]:
    """Bytes of the file, and of the same weights as float32, which a run that was loaded says of itself."""
    floats = quantized.report.get("sizes", {}).get("float weights")
    if floats is None:
        assert isinstance(quantized, Learned)
        weights = {str(n.target) for n in quantized.teacher.graph.nodes if n.op == "get_attr"}
        floats = sum(4 * attribute(quantized.teacher, name).numel() for name in weights)
    return {"model.onnx": (run / "model.onnx").stat().st_size, "float weights": floats}
