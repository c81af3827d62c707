"""onnxruntime-web, which runs a file in a browser: two files of its npm package, fetched once and kept, or lent.

It is 14 MB, and no Python package has it. Whoever has npm's package, or no network, names its folder.
"""

import base64
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from zaq.config.files import write_whole
from zaq.errors import RunError, UserError

__all__ = ["FILES", "VERSION", "runtime_files"]

VERSION = "1.30.0"
# What npm's registry says of that version: SHA-512 of the archive, base64.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
REGISTRY = "https://registry.npmjs.org"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
LARGEST = 2**27  # bytes of the archive; it has 33 million
SECONDS = 60  # without a byte


def runtime_files(lent: Path | None = None, integrity: str = INTEGRITY) -> dict[str, bytes]:
    """The files by name: of the folder `lent`, npm's package or its dist/; else of zaq's cache; else fetched.

    `integrity`: of the archive, as npm writes it. The registry is npm's own, or what NPM_CONFIG_REGISTRY says.
    Raises UserError for a folder that lacks them, RunError where they cannot be fetched or are not what they should be.
    """
    if lent is not None:
        places = [lent, lent / "dist", lent / "node_modules" / "onnxruntime-web" / "dist"]
        place = next((p for p in places if all((p / name).is_file() for name in FILES)), None)
        if place is None:
            raise UserError(
                f"--ort {lent}: {' and '.join(FILES)} are not in it; npm install onnxruntime-web@{VERSION} makes the "
                "folder that is meant, node_modules/onnxruntime-web."
            )
        return {name: (place / name).read_bytes() for name in FILES}
    kept = _cache() / f"onnxruntime-web-{VERSION}"
    if not all((kept / name).is_file() for name in FILES):
        found = _unpacked(_fetched(integrity))
        kept.mkdir(parents=True, exist_ok=True)
        for name, content in found.items():
            write_whole(kept / name, content)
    return {name: (kept / name).read_bytes() for name in FILES}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zaq"


def _fetched(integrity: str) -> bytes:
    """The archive, which is the one that was asked for to the last bit."""
    registry = (os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY).rstrip("/")
    address = f"{registry}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    hint = f"Where there is npm: npm install onnxruntime-web@{VERSION}, then --ort node_modules/onnxruntime-web."
    if not address.startswith(("https://", "http://")):
        raise UserError(f"NPM_CONFIG_REGISTRY is {registry}; an address of https:// is expected.")
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read(LARGEST + 1)
    except (OSError, urllib.error.URLError) as error:
        raise RunError(f"{address}: cannot be fetched ({error}). {hint}") from error
    kind, _, wanted = integrity.partition("-")
    if base64.b64encode(hashlib.new(kind, content).digest()).decode() != wanted:
        raise RunError(f"{address}: is not the archive that zaq knows (its {kind} differs); it was thrown away. {hint}")
    return content


def _unpacked(content: bytes) -> dict[str, bytes]:
    """The two files of the archive; no other entry is looked at, and none is written by a name of its own."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for name in FILES:
            stream = archive.extractfile(f"package/dist/{name}")
            assert stream is not None  # the archive is the one that zaq knows
            found[name] = stream.read()
    return found
