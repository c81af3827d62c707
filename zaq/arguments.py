"""What `zaq.quantize` is called with by mistake, as sentences: before the work, which would say it in torch's words."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.errors import BitsError, UserError
from zaq.quantized import Quantized
from zaq.sources import Source

__all__ = ["require_arguments"]

EXAMPLE = "torch.zeros(1, 3, 224, 224)"


def require_arguments(
    model: object, example_input: object, bits: object, card: object, effort: object, seed: object, dynamic: object
) -> None:
    """Raise UserError, or BitsError for bits, for an argument of another kind than `zaq.quantize` takes."""
    _require_a_model(model)
    if example_input is not None:
        for name, value in example_input.items() if isinstance(example_input, dict) else [("", example_input)]:
            _require_images(f"example_input[{name!r}]" if name else "example_input", value, model)
    if isinstance(bits, bool) or not isinstance(bits, str | int | QConfig):
        raise BitsError(f"bits: {_told(bits)} is none; write 'w4a4', 8, or a QConfig.")
    _require("card", card, Card | None, "write Card(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))")
    _require("effort", effort, str, "write 'fast', 'default' or 'best'")
    _require("dynamic", dynamic, str, "write 'H,W', 'H' or 'W'")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"seed: {_told(seed)} is none; a whole number is expected.")


def _require(name: str, value: object, kind: Any, remedy: str) -> None:
    if not isinstance(value, kind):
        raise UserError(f"{name}: {_told(value)} is none; {remedy}.")


def _require_a_model(model: object) -> None:
    remedy = "a torch.nn.Module is expected, or what zaq.load returns"
    if isinstance(model, str | Path):
        remedy = f"write zaq.quantize(zaq.load({str(model)!r}), ...)"
    elif isinstance(model, type) and issubclass(model, nn.Module):
        remedy = f"it is a class; write {model.__name__}(...), with its weights loaded"
    elif isinstance(model, dict):
        remedy = "weights alone are no network; put them into one with load_state_dict"
    elif isinstance(model, Quantized):
        remedy = "it is quantized already; quantize the float network it came from"
    elif isinstance(model, torch.export.ExportedProgram):
        remedy = "save it with torch.export.save(program, 'model.pt2') and write zaq.load('model.pt2')"
    _require("model", model, nn.Module | Source, remedy)


def _require_images(name: str, value: object, model: object) -> None:
    """Raise UserError for an example that is no batch of images for this model."""
    if isinstance(value, tuple | list | torch.Size) and value and all(isinstance(v, int) for v in value):
        raise UserError(f"{name}: {tuple(value)} is a shape; write torch.zeros({', '.join(map(str, value))}).")
    if isinstance(value, tuple | list) and len(value) == 1 and isinstance(value[0], Tensor):
        raise UserError(f"{name}: is a {type(value).__name__} of one tensor; write the tensor itself.")
    if not isinstance(value, Tensor):
        remedy = "write torch.from_numpy(it)" if hasattr(value, "__array__") else f"write {EXAMPLE}"
        raise UserError(f"{name}: {_told(value)} is no tensor; {remedy}.")
    layers = model.modules() if isinstance(model, nn.Module) else ()
    channels = next((m.in_channels for m in layers if isinstance(m, nn.Conv2d)), 0)
    if value.dim() == 3 and len(value) == channels > 1:  # one channel may be a batch of one that a network spreads out
        raise UserError(
            f"{name}: of {tuple(value.shape)} is one image (C, H, W), and a batch (N, C, H, W) is expected; "
            "write example_input[None]."
        )


def _told(value: object) -> str:
    """A plain value in a sentence, or its kind where it is long or anything else."""
    text = repr(value) if isinstance(value, str | int | float | tuple | list | dict | Path | None) else ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"
