"""What became of units, as one HTML file with its pictures inside."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zaq.explain.explain import STATES, Changes, Excited

__all__ = ["render"]

TEMPLATE = Path(__file__).with_name("explain.html.j2")
SHOWN = 24  # units with pictures: those that changed most
PICTURE = 64  # pixels a side, at least


def render(changes: Changes, excited: Excited, name: str) -> str:
    """The page; `name`: of the model and its bits. What a data set or a model is called stands in it as text."""
    worst = sorted(changes.units, key=lambda u: u.still - u.iou_before)[:SHOWN]
    pictures = {u.number: [[_png(image) for image in row] for row in excited.images(u.number)] for u in worst}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text())
    lost = changes.most_lost()[:10]
    return page.render(changes=changes, name=name, shown=worst, pictures=pictures, states=STATES, lost=lost)


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
