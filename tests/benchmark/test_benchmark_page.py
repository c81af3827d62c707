"""The page holds the table, the plots, where it came from, and says in red what reads real images."""

import base64
import re
import warnings

from test_table import detected, failed, row

from zaq.benchmark.page import render
from zaq.benchmark.table import in_order

ABOUT = {"command": "zaq benchmark <PLAN>.yaml", "plan": "runs: []"}


def test_the_page() -> None:
    rows = [
        row(bits=b, method=m, algorithm=m, onnx_top1=v)
        for m, v in (("zaq", 90.0), ("ft", 91.0))
        for b in ("w4a4", "w3a3")
    ]
    page = render(in_order([*rows, row(placement="integer"), failed(method="rtn", algorithm="rtn")]), ABOUT)
    assert "http" not in page and "zaq benchmark &lt;PLAN&gt;.yaml" in page and "runs: []" in page
    assert "0.1.0 (abc)" in page and "here, 2 cores" in page and "2026-01-01" in page
    assert page.count('<tr class="real"><td>ft</td>') == 2 and "ft reads real images" in page
    assert page.count('<tr class="failed"><td>rtn</td>') == 1
    pictures = re.findall(r'alt="([\w -]+)" src="data:image/png;base64,([^"]+)"', page)
    assert [name for name, _ in pictures] == ["accuracy over bits", "accuracy over minutes"]
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in pictures)


def test_a_page_of_nothing_yet_and_of_failures() -> None:
    assert "0 cells" in render([], {})
    page = render([failed()], {})
    assert "exit code 1" in page and "<img" not in page and "real images" not in page


def test_names_that_a_figure_cannot_show_as_they_are() -> None:
    """A formula that is none, letters that no font has, and more of them than a picture can be wide."""
    for name in ("$\\frac$", "\x00", "名", "a" * 20_000):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            page = render([row(bits=name, method=name, algorithm=name, placement=name)], ABOUT)
        assert page.count("data:image/png") == 2


def test_a_page_of_a_detector() -> None:
    page = render(in_order([detected(), detected(bits="w3a3"), row()]), ABOUT)
    assert "<th>mAP@50</th><th>mAP@50:95</th>" in page and "<td>28.00 (1)</td><td>13.00 (1)</td>" in page
    assert page.count("data:image/png") == 4 and "<th>top-1</th>" in page and "128 images.</p>" in page
