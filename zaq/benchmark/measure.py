"""What is measured of a finished cell: on real images, in this process, after the method has ended."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zaq.benchmark.cells import locked
from zaq.benchmark.plan import Cell
from zaq.config.bounds import json_text, plain_json, plain_text
from zaq.config.card import Card
from zaq.data import classified, listed, loaded
from zaq.errors import UserError
from zaq.evaluate import LAYOUTS, TASKS, Model, Score, decode, outputs, predictions, read_decode, task_of
from zaq.export.session import session
from zaq.run import Run, write_file
from zaq.sources import Source, load

__all__ = ["Meter"]


class Meter:
    """Measures cells; keeps the models it has read, and what was measured of the float models in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sources: dict[str, Source] = {}

    def __reduce__(self) -> tuple[type["Meter"], tuple[Path]]:
        """Sent to another process, it reads its models there."""
        return Meter, (self.folder,)

    def source(self, model: str) -> Source:
        if model not in self._sources:
            self._sources[model] = load(model)
        return self._sources[model]

    def identify(self, model: str) -> tuple[str, str]:
        """The model's name, and a hash of its file and its card."""
        source = self.source(model)
        card = json_text(source.card.to_dict(), sort_keys=True)
        return source.name, hashlib.sha256((source.sha256 + card).encode()).hexdigest()

    def card(self, cell: Cell) -> Card:
        """The card of the cell's model, with the decoding constants that the cell names."""
        return self.source(cell.model).card.override(decode=read_decode(Path(cell.decode)) if cell.decode else None)

    def check_data(self, cells: list[Cell]) -> None:
        """Raises UserError for a data set that is not there, or that a model or its task cannot use, before anything
        runs.
        """
        for cell in {(c.model, c.data, c.task, c.decode): c for c in cells}.values():
            try:
                card = self.card(cell)
                task = task_of(card, cell.task)
                samples = (
                    classified(cell.data, card) if task == "classification" else listed(cell.data, card, LAYOUTS[task])
                )
                for images, _ in loaded(samples[:1], card, 1):
                    if task == "detection":
                        decode(outputs(self.source(cell.model).graph, images), card)
            except UserError as error:
                raise type(error)(f"{self.source(cell.model).name}: {error}") from error

    def __call__(self, cell: Cell, run: Path) -> dict[str, Any]:
        """The measured part of the cell's row: every measure of its task, of the float model, the file and the
        checkpoint.
        """
        opened, task = Run.open(run), task_of(self.card(cell), cell.task)
        measured = self._classes(cell, opened) if task == "classification" else self._others(cell, opened, task)
        return measured | {"file_kb": (opened / "model.onnx").stat().st_size / 1024}

    def _classes(self, cell: Cell, run: Run) -> dict[str, Any]:
        known = self._teacher(cell, lambda: self._predicted(cell))
        expected, labels = np.array(known["predicted"]), np.array(known["labels"])
        found, _ = predictions(session(run / "model.onnx"), cell.data, run.card(), cell.limit)
        fake, _ = predictions(run.student(), cell.data, run.card(), cell.limit)
        teacher, score = Score.of(expected, labels), Score.of(found, labels)
        return {
            "float_top1": teacher.percent,
            "onnx_top1": score.percent,
            "fake_quant_top1": Score.of(fake, labels).percent,
            "drop": teacher.percent - score.percent,
            "interval": score.interval,
            "agreement": 100 * float((found == expected).mean()),
            "images": score.total,
        }

    def _predicted(self, cell: Cell) -> dict[str, Any]:
        source = self.source(cell.model)
        predicted, labels = predictions(source.graph, cell.data, source.card, cell.limit)
        return {"predicted": predicted.tolist(), "labels": labels.tolist()}

    def _others(self, cell: Cell, run: Run, task: str) -> dict[str, Any]:
        graph, card = self.source(cell.model).graph, self.card(cell)

        def measure(model: Model) -> dict[str, float]:
            return TASKS[task](model, cell.data, card, cell.limit, teacher=graph).fields()

        found = {"onnx": measure(session(run / "model.onnx")), "fake_quant": measure(run.student())}
        if task != "image":  # which is like the float model's or not
            found["float"] = self._teacher(cell, lambda: measure(graph))
        row = {
            f"{which}_{name}": value
            for which, fields in found.items()
            for name, value in fields.items()
            if name != "total"
        }
        first = next(iter(found["onnx"]))
        drop = {"drop": row[f"float_{first}"] - row[f"onnx_{first}"]} if "float" in found else {}
        return row | drop | {"images": found["onnx"]["total"]}

    def _teacher(self, cell: Cell, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` finds of the float model, once for all processes that share the folder."""
        facts = [cell.model_hash, cell.data, cell.limit, cell.task, cell.decode]
        digest = hashlib.sha256(json_text(facts).encode()).hexdigest()[:8]
        path = self.folder / "teachers" / f"{cell.model_name}-{digest}.json"
        with locked(path.with_suffix(".lock")):
            try:
                return dict(plain_json(plain_text(path)))
            except (ValueError, TypeError):  # none yet, or one that broke off
                write_file(path, json_text(measure()))
            return dict(plain_json(plain_text(path)))
