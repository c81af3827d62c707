"""A run, or an ONNX file alone, opened to be asked: our network, the float one beside it where the run keeps it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image
from torch.fx import GraphModule

from zaq.config.bounds import plain_json
from zaq.config.card import Card
from zaq.data import Sample, loaded
from zaq.errors import RunError, SourceError, UserError
from zaq.evaluate import class_names, outputs, stored_card
from zaq.export.session import properties, session, takes
from zaq.run import Run

__all__ = ["FLOAT", "Deployed", "deployed"]

FLOAT = "float"  # what the other network is called
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Deployed:
    """A file that is to be used. `name`: of the model; `bits`: what our network is called."""

    path: Path
    card: Card
    name: str
    bits: str
    ours: ort.InferenceSession
    run: Run | None = None

    @cached_property
    def teacher(self) -> GraphModule | None:
        """The float network, read when it is first asked for; None where nobody kept it."""
        found = self.run.teacher() if self.run else None
        return found and found.requires_grad_(False)

    @property
    def networks(self) -> dict[str, ort.InferenceSession | GraphModule]:
        """By what they are called: ours first, then the float one."""
        return {self.bits: self.ours} | ({} if self.teacher is None else {FLOAT: self.teacher})

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called; a detector's names may stand among its decoding constants."""
        decoded = (self.card.decode or {}).get("names")
        return self.card.class_names or (tuple(map(str, decoded)) if isinstance(decoded, list) else ())

    def ask(self, photo: Image.Image, where: str) -> dict[str, list[Values]]:
        """The outputs of each network for one photograph, each (1, ...)."""
        sample = Sample(np.ascontiguousarray(np.moveaxis(np.asarray(photo), -1, 0)), None, where)
        ((images, _),) = loaded([sample], self.card, 1)
        found = {name: outputs(model, images) for name, model in self.networks.items()}
        if broken := [name for name, values in found.items() if not all(np.isfinite(v).all() for v in values)]:
            raise RunError(f"{where}: the outputs of the {broken[0]} network are NaN or infinite for it.")
        return found


def deployed(place: Path, overrides: dict[str, Any]) -> Deployed:
    """Open a run's folder, or an .onnx file: zaq's, or another's whose normalisation `overrides` say (card fields).

    Raises SourceError for what is neither, UserError where the card does not say how images are prepared, or says a
    size that the file does not take.
    """
    run = None if place.is_file() else Run.open(place, ("model.onnx", "options.json"))
    path = run / "model.onnx" if run else place
    if path.suffix.lower() != ".onnx":
        raise SourceError(f"{place}: is neither a run of zaq quantize nor an .onnx file.")
    ours, said = session(path), properties(path)
    card = run.card() if run else _card(path, said, ours).override(class_names=class_names(path) or None)
    card = card.override(**overrides)
    if not takes(ours, card.input):
        shape = tuple(ours.get_inputs()[0].shape[1:])
        raise UserError(f"{path}: takes inputs of {shape}; --input-shape, or its card, says {card.input}.")
    if len(card.input) != 3 or card.input[0] not in (1, 3):
        raise UserError(f"{path}: takes {card.input} of a sample, which is no image in colour or grey.")
    if not card.knows_pixels:
        raise UserError(
            f"{path}: the model's normalisation is unknown, so photographs cannot be prepared; say --normalize, or "
            "--mean and --std."
        )
    name = str(run.options()["source"]["name"]) if run else path.stem
    return Deployed(path, card, name, _bits(said), ours, run)


def _card(path: Path, said: dict[str, str], ours: ort.InferenceSession) -> Card:
    """The card in a file of zaq's; of another file what its input shows."""
    if "zaq.card" in said:
        return stored_card(path)
    shape = ours.get_inputs()[0].shape[1:]
    return Card(input=tuple(shape)) if all(isinstance(size, int) and size > 0 for size in shape) else Card()


def _bits(said: dict[str, str]) -> str:
    """What our network is called: its bits, or `file` where nothing says them."""
    try:
        return str(plain_json(said.get("zaq.bits", '"file"')))[:20]
    except ValueError:
        return "file"
