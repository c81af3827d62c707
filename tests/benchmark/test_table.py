"""Tables: seeds are put together, what failed is counted, and a row has every column."""

import csv
import io
from typing import Any

import pytest

from zaq.benchmark.table import COLUMNS, Group, as_csv, as_markdown, groups, in_order, sections, whole


def row(**values: Any) -> dict[str, Any]:
    """A finished cell as result.json has it."""
    given = {
        "model": "resnet20_cifar10",
        "source": "zoo:resnet20_cifar10",
        "model_hash": "1234",
        "data": "cifar10:/data",
        "method": "zaq",
        "algorithm": "zaq",
        "settings": "",
        "bits": "w4a4",
        "placement": "gdfq",
        "weights": "",
        "first_last": "",
        "effort": "fast",
        "seed": 0,
        "float_top1": 93.0,
        "onnx_top1": 90.0,
        "fake_quant_top1": 90.1,
        "drop": 3.0,
        "interval": 0.588,
        "agreement": 95.0,
        "minutes": 0.5,
        "peak_mb": 700.0,
        "file_kb": 300.0,
        "images": 10000,
        "error": "",
        "zaq": "0.1.0 (abc)",
        "machine": "here, 2 cores",
        "date": "2026-01-01T00:00:00+00:00",
    }
    return {**given, **values}


def failed(**values: Any) -> dict[str, Any]:
    measured = (
        "float_top1",
        "onnx_top1",
        "fake_quant_top1",
        "drop",
        "interval",
        "agreement",
        "file_kb",
        "images",
        "peak_mb",
    )
    return {k: v for k, v in row(error="exit code 1: zaq: | broke", **values).items() if k not in measured}


def test_mean_and_sample_deviation_over_seeds() -> None:
    group = Group([row(seed=s, onnx_top1=v) for s, v in enumerate((89.0, 90.0, 92.0))] + [failed(seed=3)])
    assert group.mean("onnx_top1") == pytest.approx(90.3333, abs=1e-4)
    assert group.deviation("onnx_top1") == pytest.approx(1.5275, abs=1e-4)  # sqrt((1.333^2 + 0.333^2 + 1.667^2) / 2)
    assert group.cells()["top-1"] == "90.33 ± 1.53 (3), 1 failed"
    assert Group([row()]).deviation("onnx_top1") is None and Group([row()]).cells()["top-1"] == "90.00 (1)"
    assert Group([failed()]).cells()["top-1"] == "failed: exit code 1: zaq: | broke"


def test_only_seeds_are_put_together() -> None:
    others = [
        {"bits": "w3a3"},
        {"settings": "alpha=0"},
        {"effort": "best"},
        {"placement": "integer"},
        {"data": "csv:/x"},
        {"method": "b"},
        {"model_hash": "5678", "source": "my/resnet20_cifar10.pt2"},
    ]
    rows = in_order([row(), *(row(**o) for o in others), row(seed=1)])
    assert list(sections(rows)) == [
        "resnet20_cifar10 (zoo:resnet20_cifar10, 1234), cifar10:/data",
        "resnet20_cifar10 (zoo:resnet20_cifar10, 1234), csv:/x",
        "resnet20_cifar10 (resnet20_cifar10.pt2, 5678), cifar10:/data",
    ]
    assert sorted(len(g.rows) for g in groups(rows)) == [1] * 7 + [2]


def test_more_bits_come_first() -> None:
    rows = in_order([row(bits=b) for b in ("w4a4", "w²a4", "w2a4", "w8a8", "w4a8")])
    assert [r["bits"] for r in rows] == ["w8a8", "w4a8", "w4a4", "w2a4", "w²a4"]


def test_the_csv_file_has_a_row_a_cell_and_the_published_number() -> None:
    found = list(csv.DictReader(io.StringIO(as_csv([row(), failed(seed=1)]))))
    assert tuple(found[0]) == COLUMNS and len(found) == 2
    assert (
        found[0]["onnx_top1"] == "90.0"
        and found[0]["published_top1"] == "92.13"
        and found[0]["published_source"] == "[T:AdaDFQ]"
    )
    assert found[1]["onnx_top1"] == "" and found[1]["error"] == "exit code 1: zaq: | broke"


def test_text_is_neither_formula_nor_html_nor_link() -> None:
    """Names of models and methods, and what a failed run said, come from anywhere; numbers stay numbers."""
    harm = {"model": "=cmd()", "settings": "+1", "placement": "-x", "method": "@a", "drop": -1.5}
    (found,) = csv.DictReader(io.StringIO(as_csv([row(**harm)])))
    assert {k: found[k] for k in harm} == {
        "model": "'=cmd()",
        "settings": "'+1",
        "placement": "'-x",
        "method": "'@a",
        "drop": "-1.5",
    }
    text = as_markdown([row(model="<b>", method="<script>|[a](http://b)\r# c")])
    assert "## &lt;b> (zoo" in text and "&lt;script>\\|[a]\\(http://b) # c" in text and "<" not in text


def test_the_markdown_table() -> None:
    text = as_markdown(in_order([row(), row(seed=1, onnx_top1=91.0, drop=2.0), failed(bits="w3a3")]))
    assert "10000 images" in text and "| float |  |  |  | 93.00 |" in text
    assert (
        "| zaq | w4a4 | gdfq | fast | 90.50 ± 0.71 (2) | 2.50 | 90.10 | 95.00 | 0.5 | 700 | 300 | 1.76 (P1; as listed"
        in text
    )
    assert r"failed: exit code 1: zaq: \| broke" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def detected(**values: Any) -> dict[str, Any]:
    """A finished cell of a detector: two measures of each model, and nothing of classes."""
    of_classes = ("float_top1", "onnx_top1", "fake_quant_top1", "interval", "agreement")
    scores = {
        f"{model}_{m}": v
        for model, v in (("float", 31.0), ("onnx", 28.0), ("fake_quant", 28.5))
        for m in ("map50", "map")
    }
    return {
        **{
            k: v
            for k, v in row(model="yolo", model_hash="abcd", data="yolo:/data", images=128).items()
            if k not in of_classes
        },
        **scores,
        "onnx_map": 13.0,
        **values,
    }


def test_a_detector_has_its_own_measures() -> None:
    rows = in_order(
        [
            detected(),
            detected(seed=1, onnx_map50=30.0),
            failed(model="yolo", model_hash="abcd", data="yolo:/data", bits="w3a3"),
        ]
    )
    text = as_markdown(rows)
    assert (
        "| method | bits | placement | effort | mAP@50 | mAP@50:95 | drop | fake-quant | minutes | peak MB | KB |"
        in text
    )
    assert (
        "| float |  |  |  | 31.00 | 31.00 |" in text
        and "128 images.\n" in text
        and "top-1" not in text.partition("\nPublished")[0]
    )
    assert "| zaq | w4a4 | gdfq | fast | 29.00 ± 1.41 (2) | 13.00 ± 0.00 (2) | 3.00 | 28.50 |" in text
    assert r"| zaq | w3a3 | gdfq | fast | failed: exit code 1: zaq: \| broke |" in text
    found = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert found[0]["onnx_map50"] == "28.0" and found[0]["float_map"] == "31.0" and "onnx_top1" not in found[0]
    assert {"onnx_top1", "onnx_map50"} <= set(next(csv.reader(io.StringIO(as_csv([row(), detected()])))))


def test_what_is_no_whole_row() -> None:
    """Of a file that broke off, that another program wrote, or whose numbers are none."""
    assert whole(row()) and whole(failed())
    for key in ("model", "bits", "error", "date", "minutes", "images", "onnx_top1", "seed"):
        assert not whole({k: v for k, v in row().items() if k != key}), key
    for change in ({"onnx_top1": None}, {"onnx_top1": float("nan")}, {"minutes": "1"}, {"bits": 4}, {"seed": None},
                   {"images": 10**400}, {"peak_mb": 1e308}):  # fmt: skip
        assert not whole(row(**change)), change
    assert not whole([]) and not whole(None)


def test_rows_that_were_measured_by_more_and_by_less() -> None:
    less = {k: v for k, v in row(seed=1).items() if k not in ("float_top1", "agreement", "drop")}
    for rows in ([row(), less], [less, row()]):
        assert "90.00 ± 0.00 (2)" in as_markdown(in_order(rows))
