"""Figures of matplotlib, as they can lie inside a page."""

import base64
import io
import warnings

from matplotlib.figure import Figure

__all__ = ["image", "plain"]


def plain(text: str) -> str:
    """A name as a figure can show it: no formula begins at a `$`, and no picture becomes as wide as somebody likes."""
    return text[:100].replace("$", r"\$")


def image(figure: Figure) -> str:
    """A figure as a data URL, to lie inside a page."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name in letters that the font lacks
        figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
