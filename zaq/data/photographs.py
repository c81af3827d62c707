"""The photographs of `zaq quantize --proxy DIR`: without labels, of anything, of any size."""

from pathlib import Path

import numpy as np
import torch

from zaq.config.card import Card
from zaq.data.annotated import IMAGES
from zaq.data.pixels import read, size_of
from zaq.engine.progress import Progress
from zaq.errors import DataError
from zaq.synth.adapter import Photographs

__all__ = ["photographs_in"]

MOST = 1024  # as many as `--effort best` learns from


def photographs_in(folder: Path, card: Card, progress: Progress | None = None) -> Photographs:
    """The images below a folder, brought to the model's size as its card says; of more than MOST so many, evenly
    spread.

    Raises DataError, naming the file, for one that cannot be read; for a folder without images; and for a model whose
    pixels are not known.
    """
    if not card.knows_pixels:
        raise DataError(
            "--proxy: the model's normalisation is unknown, so photographs cannot be prepared; say --normalize, or "
            "--mean and --std."
        )
    if len(card.input) != 3 or card.input[0] not in (1, 3):
        raise DataError(f"--proxy: the model takes {card.input} of a sample; a photograph has 1 or 3 channels.")
    samples, size, notes = IMAGES["images"](folder, "", card), card.input[:0:-1], list[str]()
    if (found := len(samples)) > MOST:
        samples = [samples[i * found // MOST] for i in range(MOST)]
        notes.append(f"of its {found} images {MOST} are taken, evenly spread")
    chosen = (progress or Progress()).track(f"reading {folder}", len(samples))
    pixels = torch.from_numpy(np.stack([read(samples[i], card) for i in chosen]))
    if others := sum(size_of(Path(sample.where)) != size for sample in samples):
        notes.append(
            f"{others} of its {len(samples)} images were of another size, and brought to {size[0]} x {size[1]}"
        )
    return Photographs(pixels, f"images:{folder}", tuple(notes))
