"""The page holds the table, the plots, where it came from, and says in red what reads real images."""

import re

from test_table import detected, failed, row

from zaq.benchmark.page import render
from zaq.benchmark.table import in_order

ABOUT = {"command": "zaq benchmark <PLAN>.yaml", "plan": "runs: []"}
DRAWN = {"over bits", "over KB", "over minutes"}


def drawn(page: str) -> list[str]:
    """What the charts are called."""
    return re.findall(r"<figcaption>([^<]*)", page)


def test_the_page() -> None:
    rows = [
        row(bits=b, method=m, algorithm=m, onnx_top1=v)
        for m, v in (("zaq", 90.0), ("ft", 91.0))
        for b in ("w4a4", "w3a3")
    ]
    page = render(in_order([*rows, row(placement="integer"), failed(method="rtn", algorithm="rtn")]), ABOUT)
    assert (
        "http:" not in page
        and "https:" not in page
        and "zaq benchmark &lt;PLAN&gt;.yaml" in page
        and "runs: []" in page
    )
    assert "0.1.0 (abc)" in page and "here, 2 cores" in page and "2026-01-01" in page
    assert page.count('<tr class="real"><td class="name">ft</td>') == 2 and "ft reads real images" in page
    assert page.count('<tr class="failed"><td class="name">rtn</td>') == 1
    assert len(drawn(page)) == 3 and all(any(what in title for title in drawn(page)) for what in DRAWN)


def test_the_best_is_marked_among_what_reads_no_image() -> None:
    methods = (("zaq", 90.0), ("gdfq", 90.5), ("ft", 99.0))
    page = render(in_order([row(method=m, algorithm=m, onnx_top1=v) for m, v in methods]), ABOUT)
    assert re.findall(r'<tr class="best"><td class="name">(\w+)</td>', page) == ["gdfq"]
    alone = render([row()], ABOUT)
    assert 'class="best"' not in alone  # nothing to be better than


def test_cells_link_to_their_reports() -> None:
    rows = [row(cell="a b", seed=0), row(cell="c", seed=1)]
    page = render(in_order(rows), ABOUT)
    assert (
        'href="cells/a%20b/run/report.html">seed 0</a>' in page and 'href="cells/c/run/report.html">seed 1</a>' in page
    )
    assert 'href="cells' not in render([row()], ABOUT)  # of an older benchmark


def test_protocols_are_said_in_words() -> None:
    page = render([row(placement="integer")], ABOUT)
    table = page[: page.index("How it was made")]
    assert "GDFQ&#39;s protocol" in table and "not this row&#39;s" in table
    assert "P1" not in table and "other protocol" not in table


def test_numbers_are_sorted_as_numbers() -> None:
    page = render(in_order([row(seed=0, onnx_top1=9.5), row(seed=1, onnx_top1=10.5)]), ABOUT)
    assert 'data-value="10.0">10.00 ± 0.71 (2)' in page


def test_a_page_of_nothing_yet_and_of_failures() -> None:
    assert "0 cells" in render([], {})
    page = render([failed()], {})
    assert "exit code 1" in page and not drawn(page) and "real images." not in page


def test_names_are_text() -> None:
    for name in ("$\\frac$", "<script>alert(1)</script>", "名", "a" * 20_000):
        page = render([row(bits=name, method=name, algorithm=name, placement=name)], ABOUT)
        assert "<script>alert" not in page and len(drawn(page)) == 2


def test_a_page_of_a_detector() -> None:
    page = render(in_order([detected(), detected(bits="w3a3"), row()]), ABOUT)
    heads = re.findall(r"<th[^>]*>([^<]*)", page)
    assert {"mAP@50", "mAP@50:95", "top-1"} <= set(heads) and ">28.00 (1)</td>" in page and ">13.00 (1)</td>" in page
    assert len(drawn(page)) == 5 and "128 images" in page
