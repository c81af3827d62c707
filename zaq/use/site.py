"""A page that runs a file in the browser, the float network beside it: a folder of plain files for any web server.

Nothing is fetched from elsewhere when it is opened, and a service worker keeps it for when there is no network.
"""

import hashlib
from pathlib import Path
from typing import Any

import jinja2

from zaq.config.bounds import json_text
from zaq.errors import UserError
from zaq.evaluate.boxes import DECODERS
from zaq.export.onnx import to_onnx
from zaq.export.program import program_of
from zaq.sources.frame import network_of
from zaq.use.network import Deployed

__all__ = ["site_files"]

PAGES = Path(__file__).with_name("site")
PLAIN = ("answers.js", "app.js", "icon.svg", "pixels.js", "style.css", "worker.js")
HEADINGS = {
    "classification": "What it sees",
    "detection": "What it found",
    "embedding": "The vector",
    "image": "What it makes of it",
    "segmentation": "Share of the picture",
}


def site_files(opened: Deployed, task: str, name: str, score: float, runtime: dict[str, bytes]) -> dict[str, bytes]:
    """The files of the page, by their paths in its folder. `runtime`: those of onnxruntime-web.

    `score`: the least one of a box. Raises UserError for a network that the page has no way to feed or to read.
    """
    if (given := opened.ours.get_inputs()[0].type) != "tensor(float)":
        raise UserError(f"{opened.path}: takes {given}; the page hands floats on.")
    kind = (opened.card.decode or {}).get("kind")
    if task == "detection" and kind not in DECODERS:
        raise UserError(
            f"{opened.path}: boxes need decoding constants of kind {' or '.join(DECODERS)}; --decode names them."
        )
    networks = {"model.onnx": network_of(opened.path.read_bytes())}
    if opened.teacher is not None:
        networks["float.onnx"] = to_onnx(program_of(opened.teacher), {}, form="float")
    files = {file: (PAGES / file).read_bytes() for file in PLAIN} | networks
    files |= {f"ort/{file}": content for file, content in runtime.items()}
    files["manifest.webmanifest"] = json_text(_manifest(name, opened.bits), indent=1).encode()
    page = {"name": name, "bits": opened.bits, "task": task, "heading": HEADINGS[task]}
    files["index.html"] = _rendered("index.html.j2", facts=_facts(opened, task, score, networks), **page)
    digest = hashlib.sha256(b"".join(files[file] for file in sorted(files))).hexdigest()
    files["service.js"] = _rendered("service.js.j2", version=f"zaq {digest[:16]}", files=["./", *sorted(files)])
    return files


def _facts(opened: Deployed, task: str, score: float, networks: dict[str, bytes]) -> dict[str, Any]:
    """What the page knows of the network."""
    card = opened.card
    called = dict(zip(opened.networks, networks, strict=True))
    return {
        "bits": opened.bits,
        "crop": card.crop,
        "decode": card.decode,
        "input": card.input,
        "interpolation": card.interpolation,
        "mean": card.mean,
        "names": opened.names,
        "networks": called,
        "order": card.order,
        "resize": card.resize,
        "score": score,
        "sizes": {name: len(networks[file]) for name, file in called.items()},
        "std": card.std,
        "task": task,
    }


def _manifest(name: str, bits: str) -> dict[str, Any]:
    return {
        "name": f"{name} {bits}",
        "short_name": name[:12],
        "start_url": "./",
        "display": "standalone",
        "background_color": "#f5f4f0",
        "theme_color": "#0b7a5b",
        "icons": [{"src": "icon.svg", "sizes": "any", "type": "image/svg+xml"}],
    }


def _rendered(template: str, **values: Any) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**values).encode()
