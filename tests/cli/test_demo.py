"""`zaq demo`: the page, opened in a browser as a person does. ZAQ_SCREENSHOTS names a folder for pictures of it."""

import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import zaq_here
from foreign import SSD, YOLO, half, negative, segmenter, ship, ssd, yolo

from zaq.use.runtime import FILES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
PACKAGE = Path(os.environ.get("NODE_PATH", "/nowhere")) / "onnxruntime-web"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the shipped network; with onnxruntime-web where it is there, else with files of its names."""
    folder = tmp_path_factory.mktemp("site")
    package = PACKAGE
    if not package.is_dir():
        package = folder / "stand-in"
        package.mkdir()
        for name in FILES:
            (package / name).write_text("none")
    done = zaq_here("demo", run, "-o", folder / "page", "--ort", package)
    assert done.exit_code == 0 and "python -m http.server" in done.output, done.output
    return folder / "page"


def test_all_that_the_page_names_is_in_its_folder(site: Path) -> None:
    page, service = (site / "index.html").read_text(), (site / "service.js").read_text()
    facts = json.loads(re.findall(r'id="facts">(.*?)</script>', page)[0])
    kept = json.loads(re.findall(r"FILES = (\[.*?\]);", service)[0])
    there = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    assert set(kept) == there - {"service.js"} | {"./"}
    assert facts["networks"] == {"w4a4": "model.onnx", "float": "float.onnx"}
    assert set(re.findall(r'(?:href|src)="([^"]+)"', page)) <= there
    texts = "".join(p.read_text() for p in site.glob("*.*") if p.suffix in (".html", ".js", ".css"))
    assert not re.findall(r"https?://\w", texts)  # nothing is fetched from elsewhere
    assert facts["names"][3] == "cat" and facts["sizes"]["float"] == (site / "float.onnx").stat().st_size
    kernels = {n.op_type for n in onnx.load(site / "float.onnx").graph.node}
    assert "QuantizeLinear" not in kernels and "Conv" in kernels


def test_a_name_of_a_class_is_text(tmp_path: Path) -> None:
    """Whoever sends a file names its classes; no page runs what they wrote."""
    for name in FILES:
        (tmp_path / name).write_text("none")
    names = ["</script><script>alert(1)</script>", "<b>red"]
    (tmp_path / "labels.json").write_text(json.dumps(names))
    flags = ("--task", "segmentation", "--normalize", "0-1", "--labels", tmp_path / "labels.json")
    file = segmenter(tmp_path / "a<i>&.onnx")
    done = zaq_here("demo", file, "-o", tmp_path / "page", "--ort", tmp_path, *flags)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page" / "index.html").read_text()
    assert "alert(1)" in page and not {"<script>alert", "<b>", "<i>"} & set(re.findall(r"<script>alert|<b>|<i>", page))
    assert json.loads(re.findall(r'id="facts">(.*?)</script>', page)[0])["names"] == names


def test_refusals(run: Path, site: Path, tmp_path: Path) -> None:
    def refused(*args: object) -> str:
        done = zaq_here("demo", *args)
        assert done.exit_code == 2, done.output
        return done.stderr

    assert "exists already" in refused(run, "-o", site)
    assert "is no run of zaq quantize" in refused(tmp_path, "-o", tmp_path / "page")
    assert "npm install onnxruntime-web@" in refused(run, "-o", tmp_path / "page", "--ort", tmp_path)
    detection = refused(run, "-o", tmp_path / "page", "--ort", site / "ort", "--task", "detection")
    assert "boxes need decoding constants of kind ssd or yolov3" in detection
    assert not (tmp_path / "page").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM or not PACKAGE.is_dir():
        pytest.skip("Chromium, or the npm package onnxruntime-web under NODE_PATH, is not there")
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def drop(page: Any, path: Path) -> None:
    """Let a file fall on the page, and wait until all is said."""
    data = page.evaluate_handle(
        "([bytes, name]) => { const given = new DataTransfer();"
        "given.items.add(new File([new Uint8Array(bytes)], name)); return given; }",
        [list(path.read_bytes()), path.name],
    )
    page.dispatch_event("#stage", "drop", {"dataTransfer": data})
    page.wait_for_selector("#state.ready")


def test_a_photograph_is_dropped(run: Path, browser: Any, site: Path, tmp_path: Path) -> None:
    """The page says what zaq predict says, of both networks; then without a web server, as a phone has it kept."""
    photo = ship(tmp_path / "ship.png")
    (told,) = json.loads(zaq_here("predict", run, photo, "--json").stdout)
    ours, theirs = (told[name]["classes"][0] for name in ("quantized", "float"))
    assert ours["name"] == theirs["name"] == "ship"
    with served(site) as address:
        page = browser.new_page(viewport={"width": 1300, "height": 900}, color_scheme="light")
        asked, wrong = list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#state.ready")
        for width, scheme in ((1300, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=scheme)
            drop(page, photo)
            first = page.locator("#answers .row").first
            assert first.locator(".name").inner_text() == "ship"
            said = [float(p) for p in re.findall(r"([\d.]+) %", first.locator(".value").inner_text())]
            wanted = [100 * ours["probability"], 100 * theirs["probability"]]
            assert said == pytest.approx(wanted, abs=5)  # a browser resizes otherwise than zaq
            assert re.findall(r"(\w+)\s+[\d.]+ ms", page.inner_text("#times")) == ["w4a4", "float"]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            pictures = Path(os.environ.get("ZAQ_SCREENSHOTS", tmp_path))
            page.screenshot(path=pictures / f"demo-{width}-{scheme}.png", full_page=True)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.context.set_offline(True)
        page.reload()
        page.wait_for_selector("#state.ready")
        drop(page, photo)
        assert page.locator("#answers .row .name").first.inner_text() == "ship"
        (tmp_path / "notes.txt").write_text("no image")
        drop(page, tmp_path / "notes.txt")
        assert "notes.txt cannot be read as an image" in page.inner_text("#error")
        assert not wrong and all(url.startswith((address, "blob:")) for url in asked)


def opened(browser: Any, address: str) -> Any:
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#state.ready")
    return page


@pytest.mark.parametrize(
    "task", ["yolo", "segmentation", *(pytest.param(t, marks=pytest.mark.slow) for t in ("ssd", "image", "embedding"))]
)
def test_every_task_is_shown(task: str, browser: Any, tmp_path: Path) -> None:
    """Of files that somebody else wrote, in the browser as by zaq predict."""
    make = {"yolo": yolo, "ssd": ssd, "segmentation": segmenter, "image": negative, "embedding": negative}[task]
    flags: list[object] = ["--normalize", "-1-1" if task == "image" else "0-1"]
    flags += ["--task", "detection" if task in ("yolo", "ssd") else task]
    if task in ("yolo", "ssd"):
        (tmp_path / "decode.json").write_text(json.dumps(YOLO if task == "yolo" else SSD))
        flags += ["--decode", tmp_path / "decode.json"]
    if task == "segmentation":
        (tmp_path / "labels.txt").write_text("black\nred\n")
        flags += ["--labels", tmp_path / "labels.txt", "--crop", 16]
    file, photo = make(tmp_path / "net.onnx"), half(tmp_path)
    (told,) = json.loads(zaq_here("predict", file, photo, *flags, "--json").stdout)
    done = zaq_here("demo", file, "-o", tmp_path / "page", "--ort", PACKAGE, *flags)
    assert done.exit_code == 0, done.output
    with served(tmp_path / "page") as address:
        page = opened(browser, address)
        drop(page, photo)
        shown, picture = page.inner_text("#answers"), page.locator("#picture")
        colour = "(canvas, x, y) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]"
        if task in ("yolo", "ssd"):
            assert [line for line in shown.split("\n") if line in ("cat", "dog")] == [
                b["name"] for b in told["quantized"]["boxes"]
            ]
            x1, y1, *_ = min(b["box"] for b in told["quantized"]["boxes"])
            at = picture.evaluate(f"c => ({colour})(c, {x1 - 1}, {y1 + 12})")
            assert at != [255, 0, 0, 255] and picture.evaluate(f"c => ({colour})(c, 60, 30)") == [0, 0, 0, 255]
        elif task == "segmentation":
            assert told["quantized"]["pixels"] == {"black": 0.5, "red": 0.5} and shown.count("50.0 %") == 2
            assert picture.evaluate(f"c => ({colour})(c, 20, 16)") not in ([255, 0, 0, 255], [0, 0, 0, 255])
            assert picture.evaluate(f"c => ({colour})(c, 4, 16)") == [255, 0, 0, 255]  # the network did not see it
        elif task == "image":
            canvas = page.locator("#answers canvas")
            assert canvas.evaluate(f"c => ({colour})(c, 2, 8)") == [0, 255, 255, 255]
            assert canvas.evaluate(f"c => ({colour})(c, 13, 8)") == [255, 255, 255, 255]
        else:
            assert "768 numbers, from -1.000, -1.000" in shown
        assert not page.is_visible("#error")
        page.close()
