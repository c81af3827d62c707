"""A report in one line, and as tiles for a notebook: what a reader wants to know first."""

from typing import Any

import jinja2

__all__ = ["as_html", "as_line", "tiles"]

TILES = """
<div style="display: flex; flex-wrap: wrap; gap: 8px; font-family: sans-serif">
  {% for name, value in tiles.items() %}{% set red = name == "data read" and value != "none" %}
  <div style="border: 1px solid #8888; border-radius: 6px; padding: 8px 12px">
    <div style="font-size: 11px; opacity: 0.7">{{ name }}</div>
    <div style="font-size: 17px{% if red %}; color: #c00{% endif %}">{{ value }}</div>
  </div>
  {% endfor %}
</div>
"""


def tiles(report: dict[str, Any]) -> dict[str, str]:
    """What stands on each tile, by its name."""
    options, sizes = report["options"], report.get("sizes")
    packed = f"{report['weight_bytes'] / 1024:.0f} KB of weights, packed"
    found = {
        "model": options["source"]["name"],
        "bits": options["bits"],
        "method": f"{options['method']['name']}, {options['effort']}",
        "size": f"{sizes['model.onnx'] / 1024:.0f} of {sizes['float weights'] / 1024:.0f} KB" if sizes else packed,
    }
    share = report["agreement"].get("top1_agreement")
    if share is not None:
        found["same class as float"] = f"{100 * share:.1f} % of {report['agreement']['samples']} synthetic samples"
    return found | {"data read": options["data"] or "none", "minutes": f"{report['minutes']:.1f}"}


def as_line(report: dict[str, Any]) -> str:
    """The tiles as one line."""
    found = tiles(report)
    told = [f"{name} {value}" for name, value in found.items() if name not in ("model", "bits")]
    return f"Quantized({found['model']} at {found['bits']}: {'; '.join(told)})"


def as_html(report: dict[str, Any]) -> str:
    """The tiles as HTML, escaped."""
    return jinja2.Environment(autoescape=True).from_string(TILES).render(tiles=tiles(report))
