"""onnxruntime-web: fetched from a registry once and kept, checked to the last bit, or lent by its folder."""

import base64
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from zaq.errors import RunError, UserError
from zaq.use.runtime import FILES, VERSION, runtime_files


def archive() -> bytes:
    """What npm packs, in small, with an entry that leads out of its folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name in (*(f"package/dist/{file}" for file in FILES), "package/dist/other.js", "../outside.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            packed.addfile(entry, io.BytesIO(name.encode()))
    return stream.getvalue()


def integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry on this machine; its folder for onnxruntime-web."""
    place = tmp_path / "registry" / "onnxruntime-web" / "-"
    place.mkdir(parents=True)
    handler = partial(Quiet, directory=str(tmp_path / "registry"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield place
        server.shutdown()


def test_it_is_fetched_once_and_nothing_else_is_unpacked(registry: Path, tmp_path: Path) -> None:
    packed = registry / f"onnxruntime-web-{VERSION}.tgz"
    packed.write_bytes(archive())
    found = runtime_files(integrity=integrity(archive()))
    assert found == {name: f"package/dist/{name}".encode() for name in FILES}
    packed.unlink()
    assert runtime_files() == found  # of the cache
    kept = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert sorted(kept) == sorted(FILES) and not list(tmp_path.rglob("outside.txt"))


def test_another_archive_is_thrown_away(registry: Path, tmp_path: Path) -> None:
    (registry / f"onnxruntime-web-{VERSION}.tgz").write_bytes(archive())
    with pytest.raises(RunError, match="is not the archive that zaq knows"):
        runtime_files()
    assert not (tmp_path / "cache").exists()


def test_where_there_is_none(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"cannot be fetched .*404.*--ort node_modules/onnxruntime-web"):
        runtime_files()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "file:///etc")
    with pytest.raises(UserError, match="an address of https:// is expected"):
        runtime_files()


def test_a_folder_that_is_lent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"npm install onnxruntime-web@"):
        runtime_files(tmp_path)
    package = tmp_path / "node_modules" / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    for name in FILES:
        (package / "dist" / name).write_text(name)
    wanted = {name: name.encode() for name in FILES}
    assert all(runtime_files(place) == wanted for place in (tmp_path, package, package / "dist"))
