"""The page is one file that fetches nothing, shows what a report has and leaves out what it has not, and leaves
nothing of a hostile name unescaped. In a browser: it fits a phone, sorts, and asks for nothing.
ZAQ_SCREENSHOTS names a folder for pictures of it."""

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import zaq_here
from zoo import CARD, quantized_net
from zoo import saved as write

from zaq.methods.flagship import Flagship
from zaq.methods.rtn import RTN
from zaq.quantized import Learned
from zaq.report.page import LINKS, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>"
TINY = Flagship(synthesis=2, refine=1, images=64, reconstruct=3, polish=2, game=1)


@pytest.fixture(scope="module")
def made() -> Learned:
    return quantized_net("residual", "w4a4", TINY, card=CARD)


@pytest.fixture(scope="module")
def saved(made: Learned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "run"
    made.save(folder)
    return folder


def test_what_a_run_leaves_stands_on_its_page(saved: Path) -> None:
    report, page = json.loads((saved / "report.json").read_text()), (saved / "report.html").read_text()
    assert page.index("Is it good?") < page.index("Which layer costs most?") < page.index("Is the file the model?")
    worst = report["sensitivity"]["layers"][0]
    table = page[page.index("Which layer costs most?") :]
    first = re.findall(r'<td class="name">([^<]+)</td>.*?data-value="([^"]+)"', table)[0]
    assert first[0] == worst["module"] and float(first[1]) == worst["loss"]
    assert page.count('class="histogram"') == 2 * sum("histogram" in t for t in report["tensors"]) > 20
    assert ">stem.2 <small>relu</small></td>" in page  # a tensor of the graph, by the user's module
    tensors = page[page.index("<h3>Weights</h3>") :].partition("</table>")[0]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", tensors)
    cells = dict(zip(heads, re.findall(r"<td.*?</td>", tensors.partition("<tbody>")[2]), strict=False))
    row = next(t for t in report["tensors"] if t["kind"] == "weight")
    assert ", before: " in cells["before"] and ", after: " in cells["after"] and f">{row['bits']}<" in cells["bits"]
    assert f'data-value="{row["sqnr"]}"' in cells["SQNR"]
    assert f'data-value="{100 * row["histogram"]["clipped"]}"' in cells["clipped %"]
    blocks = next(s for s in report["stages"] if s["name"] == "reconstruct")
    assert page.count("<title>block ") == len(blocks["borders"]) >= 2
    assert all(s["seconds"] > 0 for s in report["stages"]) and page.count("data:image/png") == 1
    assert all((saved / name).is_file() for name in re.findall(r'<a href="([^"]+)"', page))
    assert set(re.findall(r'(?:href|src)="([^"]+)"', page)) <= {
        *LINKS,
        "data:,",
        *re.findall(r'src="(data:[^"]+)', page),
    }
    assert not re.findall(r"https?://", page)


def test_names_stay_text(made: Learned) -> None:
    report = copy.deepcopy(made.report)
    report["options"]["source"]["name"] = report["options"]["call"] = report["notes"] = HOSTILE
    report["notes"], report["in_float"] = [HOSTILE, HOSTILE * 9], [HOSTILE]
    for row in (*report["tensors"], *report["sensitivity"]["layers"], *report["stages"]):
        row.update({key: HOSTILE for key in ("name", "module", "weight", "note") if key in row})
    log = [{"stage": HOSTILE, "step": i, HOSTILE: 1.0 + i} for i in range(3)]
    page = render(report, log, made.samples, CARD, [HOSTILE])
    assert page.count("<script>") == 1 and "<img src=x" not in page and page.count("&lt;script&gt;") > 20


def older(report: dict[str, Any]) -> None:
    """As zaq wrote it before it measured layers, tensors and stages, and where nothing was written."""
    for key in ("sensitivity", "parity", "estimate", "sizes", "deployment", "fault", "speed", "covered"):
        report.pop(key, None)
    for row in (*report["tensors"], *report["stages"]):
        for key in ("module", "histogram", "seconds", "borders"):
            row.pop(key, None)


def interrupted(report: dict[str, Any]) -> None:
    report["interrupted"], report["sensitivity"] = True, None


def unfit(report: dict[str, Any]) -> None:
    report["fault"], report["options"]["data"] = "model.onnx: is not its checkpoint", "cifar10:DIR"


@pytest.mark.parametrize(
    ("change", "told", "missing"),
    [
        (older, "Not verified", ("Which layer costs most?", "histogram</", "seconds</th>")),
        (interrupted, "This run was interrupted", ("Which layer costs most?",)),
        (unfit, "is not its checkpoint", ("data-free</div>",)),
    ],
)
def test_what_is_not_there_is_left_out(made: Learned, change: Any, told: str, missing: tuple[str, ...]) -> None:
    report = copy.deepcopy(made.report)
    change(report)
    page = render(report, [], None, CARD)
    assert told in page and not [text for text in missing if text in page]
    assert "data:image" not in page


@pytest.mark.parametrize("net", ["no_batch_norm", "transposed"])
def test_networks_without_batch_norm_and_without_classes(net: str) -> None:
    report = quantized_net(net, "w8a8", RTN(), card=CARD).report
    page = render(report, [], None, CARD)
    assert report["sensitivity"]["classes"] == (net == "no_batch_norm")
    assert ("as a share of their signal" in page) == (net != "no_batch_norm")
    assert ("same class as float" in page) == (net == "no_batch_norm")


@pytest.mark.slow  # tests/cli/test_command.py repeats a run by its options; here it is the page's own words that do
def test_the_command_on_the_page_repeats_the_run(tmp_path: Path) -> None:
    model, (first, again) = tmp_path / "net.pt2", (tmp_path / "first", tmp_path / "again")
    write("residual", model)
    done = zaq_here("quantize", model, "--method", "zeroq", "-s", "batch=8", "-s", "steps=4", "-o", first)
    assert done.exit_code == 0, done.output
    (command,) = re.findall(r"<pre>(zaq quantize --config [^<]+)</pre>", (first / "report.html").read_text())
    words = command.replace("RUN/", f"{first}/").replace("again/", str(again)).split()
    assert zaq_here(*words[1:]).exit_code == 0
    assert (again / "model.onnx").read_bytes() == (first / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("Chromium is not there")
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def test_in_a_browser(browser: Any, saved: Path, tmp_path: Path) -> None:
    page, wrong, asked = browser.new_page(), list[str](), list[str]()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    pictures = Path(os.environ.get("ZAQ_SCREENSHOTS", tmp_path))
    for width, scheme in ((1300, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        page.goto((saved / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=pictures / f"report-{width}-{scheme}.png", full_page=True)
    table = page.locator("table.sortable").first
    losses = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => Number(r.cells[2].dataset.value))"
    found = page.evaluate(losses)
    assert found == sorted(found, reverse=True) and len(set(found)) > 2
    for wanted in (sorted(found), found):
        table.locator("th", has_text="divergence").click()
        assert page.evaluate(losses) == wanted
    table.locator("th", has_text="module").focus()
    page.keyboard.press("Enter")
    names = table.locator("tbody td.name").all_inner_texts()
    assert names == sorted(names)
    table.locator("td svg rect").first.hover()
    assert names[0] in page.inner_text("#tip")
    assert not wrong and all(url.startswith(("file:", "data:")) for url in asked)
    assert {url.rpartition("/")[2] for url in asked if url.startswith("file:")} == {"report.html"}
