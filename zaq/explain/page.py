"""What became of units, as one HTML file with its pictures inside."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zaq.explain.explain import STATES, Changes, Excited, Unit
from zaq.report.parts import environment

__all__ = ["render"]

SHOWN = 24  # units with pictures: those that changed most
PICTURE = 64  # pixels a side, at least
COLORS = dict(zip(STATES, ("good", "c1", "wrong", "soft"), strict=True))  # classes of the page's style


def render(changes: Changes, excited: Excited, name: str) -> str:
    """The page; `name`: of the model and its bits. What a data set or a model is called stands in it as text."""
    worst = sorted(changes.units, key=lambda u: u.still - u.iou_before)[:SHOWN]
    pictures = {u.number: [[_png(image) for image in row] for row in excited.images(u.number)] for u in worst}
    lost = [
        [concept, *map(_number, (before, after, before - after))]
        for concept, (before, after) in sorted(changes.concepts.items(), key=lambda item: item[1][1] - item[1][0])
    ]
    template = environment().get_template("explain.html.j2")
    return template.render(
        changes=changes, name=name, shown=worst, pictures=pictures, lost=lost, colors=COLORS, tiles=_tiles(changes),
        units=[_row(unit) for unit in changes.units],
    )  # fmt: skip


def _tiles(changes: Changes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": state, "value": changes.count(state)} for state in STATES]
    for what, (r, count) in changes.correlation.items():
        if r is not None:
            found.append({"name": f"r, {what}", "value": f"{r:.2f}", "note": f"of IoU and accuracy, {count} units"})
    return found


def _row(unit: Unit) -> list[Any]:
    right = ", ".join(f"{100 * share:.0f} %" for share in unit.right if share is not None)
    numbers = [_number(v) for v in (unit.iou_before, unit.iou_after, unit.still)]
    return [
        {"text": str(unit.number), "value": unit.number}, unit.state, unit.before or "-", numbers[0],
        unit.after or "-", numbers[1], numbers[2], right,
    ]  # fmt: skip


def _number(value: float) -> dict[str, Any]:
    return {"text": f"{value:.3f}", "value": value}


def _png(pixels: NDArray[np.uint8]) -> str:
    """An image (H, W, 3) as a data URL, small ones with large pixels."""
    image = Image.fromarray(pixels)
    times = max(PICTURE // max(image.size), 1)
    if times > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    elif max(image.size) > 2 * PICTURE:
        image.thumbnail((2 * PICTURE, 2 * PICTURE))
    stream = io.BytesIO()
    image.quantize(64).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
