"""What a run drew to learn from, in a file, so that other bits, targets and methods of the same model can begin there.

The file is written as a snapshot is: safetensors and JSON, nothing pickled. Images are kept as they are, in float32, so
that what is made of the file is what the run that wrote it would have made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zaq.compute.processes import is_first
from zaq.engine.journal import Journal
from zaq.engine.snapshot import Content, Unsaved, told_in
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.errors import BitsError, OutputError, RunError, SourceError

__all__ = ["IMAGES", "Keep", "Take", "drawn_in", "images_in", "kept", "taken"]

IMAGES = "images.safetensors"
TAKEN = ("images", "samples", "held_out", "generator")  # fields of the state


@dataclass(frozen=True, kw_only=True)
class Keep(Stage):
    """Have the images written, and what drew them."""

    name: str = "keep images"
    write: Callable[[Content], object]
    told: Any = None  # of which model they are

    recorded: ClassVar[bool] = False

    def once(self, state: State, journal: Journal) -> None:
        if not is_first():
            return
        try:
            self.write(Content({"model": self.told, "found": {name: getattr(state, name) for name in TAKEN}}))
        except (Unsaved, OutputError, RunError) as error:  # the run itself is well
            journal.notes.append(f"its images are not kept, and no other run can take them ({error})")


@dataclass(frozen=True, kw_only=True)
class Take(Stage):
    """Begin with what another run drew."""

    name: str = "take images"
    found: dict[str, Any]

    recorded: ClassVar[bool] = False
    after_ctrl_c: ClassVar[str] = "run"

    def once(self, state: State, journal: Journal) -> None:
        for name, value in self.found.items():
            setattr(state, name, value)
        state.keep_images()


def kept(stages: Sequence[Stage], write: Callable[[Content], object], told: Any) -> list[Stage]:
    """The stages, with one that keeps what they draw behind those that draw it. Noise is not worth a file."""
    drawing = _drawing(stages)
    if not any(stages[i].recorded for i in drawing):
        return list(stages)
    behind = drawing[-1] + 1
    return [*stages[:behind], Keep(write=write, told=told), *stages[behind:]]


def taken(stages: Sequence[Stage], found: dict[str, Any], method: str, path: Path) -> list[Stage]:
    """The stages, with another run's images in the place of those that draw some. Raises BitsError where a method has
    no such stage, or makes more than the run has left.
    """
    drawing = _drawing(stages)
    if not drawing:
        raise BitsError(
            f"--samples {path}: --method {method} draws its images while the student learns; it takes none of another "
            "run."
        )
    for name in {name for i in drawing for name in stages[i].makes()}:
        if found[name] is None:
            raise BitsError(
                f"--samples {path}: there is no {name.rstrip('s')} of that run's, which --method {method} goes on "
                "with; a run of flagship has all that any method takes."
            )
    first = drawing[0]
    rest = [s for i, s in enumerate(stages) if i > first and i not in drawing]
    return [*stages[:first], Take(found=found), *rest]


def images_in(path: Path, told: Any) -> dict[str, Any]:
    """What `Keep` wrote into a run. Raises SourceError where there is nothing, or it is of another model."""
    model, found = drawn_in(path)
    if not isinstance(model, dict) or any(model.get(k) != told[k] for k in ("sha256", "card")):
        raise SourceError(
            f"{path / IMAGES}: its images were drawn for another model, or the same with another card: "
            f"{_name(model)}, not {_name(told)}."
        )
    return found


def drawn_in(path: Path) -> tuple[Any, dict[str, Any]]:
    """What `Keep` wrote into a run, whatever model it is of: that model, and fields of the state by name. Raises
    SourceError where there is nothing.
    """
    try:
        read = told_in((path / IMAGES).read_bytes(), "model", "found")
    except OSError as error:
        raise SourceError(
            f"{path / IMAGES}: cannot be read ({error.strerror or error}); a run has it where its method draws images "
            "from the model alone; one that photographs were read for (--proxy) leaves none."
        ) from error
    if read is None or set(read["found"]) != set(TAKEN):
        raise SourceError(f"{path / IMAGES}: is damaged, or not what zaq quantize wrote.")
    return read["model"], read["found"]


def _drawing(stages: Sequence[Stage]) -> list[int]:
    """The stages by number that draw from the teacher alone; none where those held out are all that is drawn so."""
    drawing = [i for i, stage in enumerate(stages) if stage.makes()]
    return drawing if any(set(stages[i].makes()) - {"samples"} for i in drawing) else []


def _name(told: Any) -> str:
    return f"{told.get('name')}, {told.get('card')}" if isinstance(told, dict) else "one unknown"
