"""From a network to a quantized one: graph in, fold, run the method's stages on a student, and what comes out."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq.arguments import require_arguments
from zaq.compute.devices import AUTO, CPU, device_named
from zaq.compute.processes import is_first, sent
from zaq.compute.random import drawing
from zaq.config.bits import EFFORTS, LATENCY, QConfig
from zaq.config.card import Card
from zaq.config.memory import allowed, hand_back
from zaq.config.names import NO_PROXY
from zaq.cost.fastest import Fastest, fastest
from zaq.engine.images import images_in, kept, taken
from zaq.engine.journal import Journal, Log
from zaq.engine.progress import Progress, in_notebooks
from zaq.engine.runner import run_stages
from zaq.engine.snapshot import Content, Snapshots
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import NO_BATCH_NORM, Task
from zaq.engine.work import Work
from zaq.errors import BitsError, TrainingError, UserError, unknown
from zaq.export.trial import require_exportable
from zaq.ir.capture import trace
from zaq.ir.move import device_of, moved, on, onto
from zaq.ir.nodes import image_sizes, input_node
from zaq.ir.opening import read_opening
from zaq.ir.sizes import dimensions, open_up
from zaq.methods import Method, method_named
from zaq.passes.fold import fold
from zaq.quant.asked import ask
from zaq.quant.edges import weighted_layers
from zaq.quant.student import Student
from zaq.quantized import Learned, Quantized
from zaq.report import facts
from zaq.sources import Source
from zaq.sources import load as load_source
from zaq.stages.proxy import proxied
from zaq.stages.warm import warmed
from zaq.synth.adapter import Photographs
from zaq.synth.generator_file import opened

__all__ = ["load", "placed_by_time", "quantize", "quantize_graph", "teacher_of"]

BYTES = "the input is uint8: its pixels are taken to be 0 to 255"
MODULE = {"name": "module", "sha256": None}  # what is said of a model that came from no file
NAMED = 8  # layers with bits of their own that a note names
PROXIED = (
    "not data-free: it learns from the photographs of {}, moved to what the model remembers; the samples that stages "
    "are judged by are drawn all the same"
)
TRIED = 2  # images that a network is exported on before the work


def load(spec: str | Path, overrides: dict[str, object] | None = None, **how: Any) -> Any:
    """What a name or a path stands for: a `Source`, which `zaq.quantize` takes; of the folder of a run the `Quantized`
    that lies there. `overrides`, `how`: see `zaq.sources.load`, for sources alone.

    Raises SourceError for one that is missing, that is no model, or that would have to be unpickled.
    """
    if Path(spec).is_dir():
        if overrides or how:
            raise UserError(f"load: {spec} is a folder, which says itself how its network is read.")
        return Quantized.load(spec)
    return load_source(str(spec), overrides, **how)


def quantize(
    model: nn.Module | Source,
    example_input: Tensor | dict[str, Tensor] | None = None,
    bits: str | int | QConfig = "w4a4",
    method: Method | str = "flagship",
    *,
    card: Card | None = None,
    effort: str = "default",
    seed: int = 0,
    progress: Progress | None = None,
    dynamic: str = "",
    device: str | torch.device = AUTO,
    precision: str = "32-true",
    memory: int | str | None = None,
    optimize: str | None = None,
) -> Learned:
    """Quantize a trained network without data. The model is not changed.

    Args:
        model: in float32; it is copied. Or what `zaq.load` returns, whose names, types and ends its files keep; it says
            its example, card and open sizes itself.
        example_input: (N, C, H, W), normalised as the model expects; its values do not matter, H and W do.
        bits: `w4a4` and the like, 2 to 8, or one number for both; a QConfig says more.
        method: its name, or one with constants of your own: `Flagship(game=20)`.
        card: how inputs are normalised (`Card(mean=..., std=...)`); without it they count as already normalised.
        effort: fast, default or best.
        seed: of all random numbers; torch's own random state is left as it was.
        progress: who is told how far it is; by default bars in a notebook that can show them, and else nobody.
        dynamic: `H,W`, or one of them: sizes that stay open in the file, where nothing in the network depends on them;
            the report's notes say where something does.
        device: where the student learns: `cpu`, `cuda:1`, `mps`, ...; by default that of the model, where it is not the
            CPU, else the accelerator that torch finds. The student that comes back is where the model is.
        precision: of the products of both networks while the student learns: `32-true`, `bf16-mixed`, `16-mixed`.
        memory: bytes of images and features that are kept in memory, also as `2G`; what is more lies in temporary
            files. Half of what is free by default.
        optimize: `latency` leaves those layers in float, of weights stored in 8 bits, that integers make slower on this
            machine, which is timed (`zaq.cost.fastest`).

    Raises:
        TraceError: for a model that cannot be captured.
        BitsError: for bits, an effort or a method that do not exist; for less memory than a batch of images takes.
        UserError: for a device that is not there, and for a precision that it lacks; for an argument of another kind;
            for a module without an example, or a loaded model with one.
    """
    require_arguments(model, example_input, bits, card, effort, seed, dynamic)
    qconfig = bits if isinstance(bits, QConfig) else QConfig.parse(str(bits))
    method, progress = method_named(method), progress or in_notebooks()
    home = CPU if isinstance(model, Source) else device_of(model)
    work = Work(home if str(device) == AUTO and home != CPU else device_named(device), precision)
    if optimize not in (None, LATENCY):
        raise BitsError("optimize: " + unknown("aim", str(optimize), (LATENCY,)))
    told: dict[str, Any] = {
        "effort": effort,
        "seed": seed,
        "progress": progress,
        "trial": True,
        "work": work,
        "memory": memory,
    }
    if isinstance(model, Source):
        if example_input is not None or card is not None or dynamic:
            raise UserError(
                f"quantize: {model.name} was loaded, and has its example_input, card and dynamic from there; "
                "say what differs to zaq.load."
            )
        source, notes = {"name": model.name, "sha256": model.sha256}, model.notes
        if optimize:
            found = placed_by_time(model.graph, model.card, qconfig, progress)
            qconfig, notes = found.qconfig, (*notes, found.sentence())
        made = quantize_graph(model.graph, qconfig, method, card=model.card, source=source, notes=notes, **told)
        return dataclasses.replace(made, interface=model.interface, frame=model.frame)
    if example_input is None:
        raise UserError("quantize: a module needs an example_input, such as torch.zeros(1, 3, 224, 224).")
    model, example_input = on(model, CPU), moved(example_input, CPU)  # it is read, checked and exported there
    fixed: tuple[str, ...] = ()
    if dims := dimensions(dynamic):
        name, x = next(iter(example_input.items())) if isinstance(example_input, dict) else ("", example_input)

        def read(image: tuple[int, ...]) -> GraphModule:
            images = torch.zeros(2, *image, dtype=x.dtype)
            return trace(model, {name: images} if name else images)

        graph, fixed = open_up(read, tuple(x.shape[1:]), dims)
    else:
        graph = trace(model, example_input)
    notes = (*graph.meta["notes"], *fixed)
    if optimize:
        found = placed_by_time(graph, card or Card(), qconfig, progress)
        qconfig, notes = found.qconfig, (*notes, found.sentence())
    quantized = quantize_graph(graph, qconfig, method, card=card or Card(), notes=notes, **told)
    onto(quantized.module, home)
    return quantized


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
    generator: Path | None = None,
    photographs: Photographs | None = None,
    work: Work | None = None,
    memory: int | str | None = None,
    folder: Path | None = None,
) -> Learned:
    """Quantize a traced graph; what `quantize` and the command line share.

    `notes`: what the report has to say of the source.
    `real`: endless batches of real images and labels. Only a method that says `reads_data` is handed them.
    `snapshots`: where to go on from, if there is anything, and where to leave more.
    `keep`: is handed the file of what the method draws from the model alone (`engine.images`).
    `samples`: a run of the same model, whose images are taken instead.
    `generator`: a file of `zaq cocktail`, or a run, with whose generator's weights synthesis begins.
    `photographs`: real images to learn from, of which none is kept; only a method that says `proxies` is handed them.
    `work`: where and how the student learns; the graph is on the CPU, and so is what comes back.
    `trial`: export a rounded copy before the method works, so that what has no form in ONNX is refused at once.
    `memory`, `folder`: see `quantize`, and where the files of what does not fit go, if not where temporary ones do.
    """
    _check(method, qconfig, effort, seed)
    if photographs is not None and not method.proxies:
        raise BitsError(NO_PROXY.format(method.name))
    started = time.monotonic()
    teacher, card, said = teacher_of(graph, card)
    if method.pictures and len(card.input) != 3:
        raise BitsError(
            f"--method {method.name} learns from images it draws, (N, C, H, W), and the model takes {card.input} of a "
            "sample; rtn, dfq and aciq take any."
        )
    ask(teacher, qconfig)
    if not weighted_layers(teacher):
        raise BitsError("the model has no convolution or linear layer with a weight of its own; nothing to quantize.")
    work, search = work or Work(), getattr(method, "search", method.searches)
    task = Task(teacher, qconfig, card, effort, seed, search, work, memory=allowed(memory))
    journal = Journal(progress or Progress(), log or Log())
    journal.notes += [*notes, *said, *_notes(task)]
    if trial:
        with drawing(seed):
            rounded = Student(teacher, qconfig, card, search=False, unlike=task.unlike)
            require_exportable(rounded, teacher, task.noise(TRIED), qconfig.runtime)
        del rounded
        hand_back()
    told = {**(source or MODULE), "card": card}
    found = images_in(samples, told) if samples is not None else None
    cocktail = opened(generator) if generator is not None else None

    def stages_of(task: Task) -> list[Stage]:
        stages = method.plan(task, real) if method.reads_data else method.plan(task)
        if cocktail is not None and generator is not None:
            stages = warmed(stages, cocktail, task, method.name, generator)
        if photographs is not None:
            journal.notes += [PROXIED.format(photographs.place), *photographs.notes]
            return proxied(stages, photographs, task)
        if found is not None and samples is not None:
            journal.notes.append(f"it learns from the images of {samples}")
            return taken(stages, moved(found, task.device), method.name, samples)
        return kept(stages, keep, told) if keep is not None else stages

    state = _learned(State(task, folder=folder), stages_of, journal, snapshots)
    options = {
        "bits": str(qconfig),
        "target": qconfig.target,
        "qconfig": dataclasses.asdict(qconfig),
        "method": facts.method_dict(method),
        "effort": effort,
        "seed": seed,
        "device": str(work.device),
        "precision": work.precision,
        "threads": torch.get_num_threads(),  # sums are added up in another order by another number
        "memory": None if memory is None else task.memory,  # half of what is free is never the same
        "card": card.to_dict(),
        "data": photographs.place if photographs is not None else None,
        "samples": str(samples) if samples else None,
        "generator": str(generator) if generator else None,
        "source": dict(source or MODULE),  # its own: a report may be written into
    }
    seconds = snapshots.seconds if snapshots else time.monotonic() - started
    return Learned(
        module=state.student.module,
        report=facts.describe(state, journal, options, minutes=seconds / 60),
        card=state.task.card,
        samples=state.samples,
        rows=journal.log.rows,
        model=graph,
        state=state,
        journal=journal,
    )


def placed_by_time(graph: GraphModule, card: Card, qconfig: QConfig, progress: Progress | None = None) -> Fastest:
    """Which layers of a traced graph integers pay for on this machine, as the first of several processes finds.

    Raises BitsError for bits that are searched, and for a file of another runtime than the one that is timed.
    """
    if qconfig.mixed or not qconfig.preset.merges or qconfig.target != "onnxruntime":
        raise BitsError(
            f"--optimize {LATENCY}: layers are timed in onnxruntime, at bits that are known and placement integer; say "
            "--bits w8a8 or the like, without --target and --placement."
        )
    teacher, card, _ = teacher_of(graph, card)
    found = sent(fastest(teacher, card, qconfig, progress) if is_first() else None)
    assert found is not None  # it is the first one's
    return found


def teacher_of(graph: GraphModule, card: Card) -> tuple[GraphModule, Card, list[str]]:
    """The folded teacher of a traced graph, its card with all that the graph tells of the input, and what a report has
    to say of both.
    """
    card, notes = card.override(input=image_sizes(input_node(graph).meta["val"])), list[str]()
    if "stored" in input_node(graph).meta:
        card, notes = card.of_bytes(), [BYTES]
    card, said = read_opening(graph, card)
    teacher, unfolded = fold(graph)
    return teacher, card, [*notes, *said, *unfolded]


def _learned(
    state: State, stages_of: Callable[[Task], list[Stage]], journal: Journal, snapshots: Snapshots | None
) -> State:
    """What the stages leave, on the CPU. Where the device has no memory for a batch, half of it is tried once."""
    notes, task, folder = list(journal.notes), state.task, state.folder
    onto(task.teacher, task.work.device)
    with drawing(task.seed, task.device):
        try:
            run_stages(stages_of(task), state, journal, snapshots)
        except torch.OutOfMemoryError:
            half = replace(task, batch=task.batch // 2)
            if half.batch < 1:
                raise
            said = f"{task.device} has no memory for batches of {task.batch}: it began anew with {half.batch}"
            journal.progress.say(said)
            journal.begin_anew([*notes, said])
            state = None  # type: ignore[assignment]  # what it holds on the device is to be free
        if state is None:
            getattr(torch.get_device_module(half.device.type), "empty_cache", lambda: None)()
            state = State(half, folder=folder)
            run_stages(stages_of(half), state, journal, snapshots and snapshots.begin_anew())
    state.to(CPU)
    state.student.settle()
    state.student.module.requires_grad_(False)
    if broken := state.student.broken():
        raise TrainingError(
            f"{broken} of the student is NaN, or a scale that is not positive, after training; "
            "try a smaller step, e.g. -s lr_student=1e-5."
        )
    return state


def _check(method: Method, qconfig: QConfig, effort: str, seed: int) -> None:
    """Raise BitsError or UserError for what cannot be asked for, whatever the network."""
    method_named(method)
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
    if task.qconfig.layers:
        told = [f"{pattern}: {bits}" for pattern, bits in task.qconfig.layers.items()]
        more = f", and {len(told) - NAMED} more" if len(told) > NAMED else ""
        yield f"layers with bits of their own: {', '.join(told[:NAMED])}{more}"
    if task.qconfig.target != "onnxruntime":
        yield f"for {task.qconfig.target}: {task.qconfig.runtime.rule}"
