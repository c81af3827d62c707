"""Synthesis that begins with weights another network's generator has learned (`zaq quantize --generator`).

What a generator has to know, how an image is painted so that batch norms like it, is much the same for networks of one
kind; each training from random weights learns it anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zaq.engine.stage import Stage
from zaq.engine.task import Task
from zaq.errors import BitsError, SourceError
from zaq.stages.synthesis import Synthesize
from zaq.synth.merge import Cocktail, described
from zaq.synth.registry import made

__all__ = ["warmed"]


def warmed(stages: Sequence[Stage], cocktail: Cocktail, task: Task, method: str, path: Path) -> list[Stage]:
    """The stages, of which the synthesis of the images that are learned from begins with these weights. Images that
    are held out are drawn by a generator that begins at random, so that rows with and without are judged by the same.

    Raises BitsError where a method has no such stage, and for a network or a generator that the weights do not fit.
    """
    found = [s for s in stages if isinstance(s, Synthesize) and not s.held_out]
    if not found:
        raise BitsError(f"--generator {path}: --method {method} has no synthesis that could begin so; flagship has.")
    if task.classes is None:
        raise BitsError(f"--generator {path}: the model has no classes, and these generators draw by class.")
    wanted = made(found[0].generator, task.card, found[0].latent, found[0].width, task.classes)
    try:
        ours, theirs = described(wanted), described(cocktail.generators[0])
    except SourceError as error:
        raise BitsError(f"--generator {path}: in this run {error}") from error
    if ours != theirs:
        raise BitsError(
            f"--generator {path}: holds {theirs}, and this run trains {ours}. The images have to be of one size; "
            "-s generator, -s synthesis.width and -s synthesis.latent say the rest."
        )
    return [replace(s, begin=cocktail) if s in found else s for s in stages]
