"""What is measured of a finished cell: on real labelled images, in this process, after the method has ended."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaq.benchmark.cells import locked, write_text
from zaq.benchmark.plan import Cell
from zaq.data import batches
from zaq.errors import DataError
from zaq.evaluate import Score, predictions
from zaq.export.session import session
from zaq.run import Run
from zaq.sources import Source, load

__all__ = ["Meter"]


class Meter:
    """Measures cells; keeps the models it has read, and the float models' predictions in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sources: dict[str, Source] = {}

    def source(self, model: str) -> Source:
        if model not in self._sources:
            self._sources[model] = load(model)
        return self._sources[model]

    def identify(self, model: str) -> tuple[str, str]:
        """The model's name, and a hash of its file and its card."""
        source = self.source(model)
        card = json.dumps(source.card.to_dict(), sort_keys=True)
        return source.name, hashlib.sha256((source.sha256 + card).encode()).hexdigest()

    def check_data(self, cells: list[Cell]) -> None:
        """Raises DataError for a data set that is not there, or that a model cannot read, before anything runs."""
        for model, data in dict.fromkeys((c.model, c.data) for c in cells):
            try:
                if next(iter(batches(data, self.source(model).card, limit=1)), None) is None:
                    raise DataError(f"--data {data}: no images.")
            except DataError as error:
                raise DataError(f"{self.source(model).name}: {error}") from error

    def __call__(self, cell: Cell, run: Path) -> dict[str, Any]:
        """The measured part of the cell's row."""
        opened = Run.open(run)
        card, file = opened.card(), opened / "model.onnx"
        expected, labels = self._teacher(cell)
        found, _ = predictions(session(file), cell.data, card, cell.limit)
        fake, _ = predictions(opened.student(), cell.data, card, cell.limit)
        teacher, score = Score.of(expected, labels), Score.of(found, labels)
        return {
            "float_top1": teacher.percent,
            "onnx_top1": score.percent,
            "fake_quant_top1": Score.of(fake, labels).percent,
            "drop": teacher.percent - score.percent,
            "interval": score.interval,
            "agreement": 100 * float((np.asarray(found) == np.asarray(expected)).mean()),
            "file_kb": file.stat().st_size / 1024,
            "images": score.total,
        }

    def _teacher(self, cell: Cell) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The float model's predictions and the labels, computed once for all processes that share the folder."""
        digest = hashlib.sha256(json.dumps([cell.model_hash, cell.data, cell.limit]).encode()).hexdigest()[:8]
        path = self.folder / "teachers" / f"{cell.model_name}-{digest}.json"
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                source = self.source(cell.model)
                predicted, labels = predictions(source.graph, cell.data, source.card, cell.limit)
                write_text(path, json.dumps({"predicted": np.asarray(predicted).tolist(), "labels": np.asarray(labels).tolist()}))
            values = json.loads(path.read_text())
        return np.array(values["predicted"]), np.array(values["labels"])
