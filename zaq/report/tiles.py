"""What a reader of a report wants to know first: in one line, as tiles for a notebook, as tiles of the page."""

from typing import Any

import jinja2

__all__ = ["as_html", "as_line", "big_tiles", "tiles"]

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
    """What stands on each tile of a notebook, by its name."""
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


def big_tiles(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The tiles of the page: `name`, `value`, `note` and `wide`, as `parts.html.j2` takes them. One whose figure a
    report does not have is left out.
    """
    found = [_expected(report.get("estimate") or {}), _same(report["agreement"]), _size(report)]
    if speed := report.get("speed"):
        note = f"as fast as float: {speed['ours']:.3g} ms an image, not {speed['float']:.3g}, in onnxruntime here"
        found.append({"name": "speed", "value": f"{speed['times']:.2g} times", "note": note})
    data = report["options"]["data"]
    found.append({"name": "real images read", "value": data or "none", "note": "fine-tuning" if data else "data-free"})
    options = report["options"]
    note = f"{options['method']['name']}, effort {options['effort']}, seed {options['seed']}"
    found.append({"name": "time it took", "value": f"{report['minutes']:.1f} min", "note": note})
    shown = [tile for tile in found if tile]
    return [shown[0] | {"wide": True}, *shown[1:]]


def _expected(estimate: dict[str, Any]) -> dict[str, Any]:
    """How often file and float network will agree on real images, where that could be estimated."""
    run, rounding = estimate.get("run"), estimate.get("rounding")
    if not run:
        return {}
    note = f"{100 * run['low']:.0f} to {100 * run['high']:.0f} in 9 of 10 cases"
    if rounding:
        low, high = 100 * rounding["low"], 100 * rounding["high"]
        note += f"; plain rounding {100 * rounding['agreement']:.1f} % ({low:.0f} to {high:.0f})"
    name = "float network's answer, expected on real images"
    return {"name": name, "value": f"{100 * run['agreement']:.1f} %", "note": note}


def _same(agreement: dict[str, Any]) -> dict[str, Any]:
    """How close it is on synthetic samples: of a classifier the answers, else the first output's signal."""
    if "top1_agreement" in agreement:
        note = f"of {agreement['samples']} synthetic samples, mostly harder than photographs"
        return {"name": "same class as float", "value": f"{100 * agreement['top1_agreement']:.1f} %", "note": note}
    if agreement.get("output_sqnr") is not None:
        note = f"first output, on {agreement['samples']} synthetic samples"
        return {"name": "signal over noise", "value": f"{agreement['output_sqnr']:.1f} dB", "note": note}
    return {}


def _size(report: dict[str, Any]) -> dict[str, Any]:
    sizes = report.get("sizes")
    if not sizes:
        return {"name": "size", "value": f"{report['weight_bytes'] / 1024:.0f} KB", "note": "of weights, packed"}
    ours, floats = sizes["model.onnx"], sizes["float weights"]
    note = f"{floats / ours:.1f} times smaller than {floats / 1024:.0f} KB of float weights"
    return {"name": "size", "value": f"{ours / 1024:.0f} KB", "note": note}
