"""JSON that zaq writes knows no NaN; it is written in one place."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch

import zaq
from zaq.config.bounds import json_text, plain_text
from zaq.engine.journal import Log
from zaq.report.facts import sqnr

# Where JSON is handed on: to torch's reader, into a sentence, by a program that imports nothing of zaq.
OTHERS = {"sources/program.py", "sources/checks.py", "benchmark/launch.py", "config/bounds.py"}


def test_what_is_no_number_becomes_null() -> None:
    value = {"a": math.nan, "b": [1.5, (math.inf, -math.inf)], "c": {"d": None, "e": True, "f": 10**400}}
    found = json_text(value, indent=1)
    assert json.loads(found, parse_constant=pytest.fail) == {
        "a": None, "b": [1.5, [None, None]], "c": {"d": None, "e": True, "f": 10**400},
    }  # fmt: skip
    assert json_text({"b": 1, "a": 2.5}, sort_keys=True) == '{"a": 2.5, "b": 1}'


def test_nothing_else_writes_it() -> None:
    root = Path(zaq.__file__).parent
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "models"):
            continue  # these train networks and import nothing of zaq; a plain install puts them here
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        found = [f.attr for f in calls if isinstance(f, ast.Attribute) and f.attr in ("dump", "dumps")]
        assert not found or str(path.relative_to(root)) in OTHERS, f"{path} writes JSON by itself; see json_text"


def test_the_log(tmp_path: Path) -> None:
    Log(tmp_path / "log.jsonl")("polish", 1, loss=math.nan, held_out=0.5)
    assert json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)["loss"] is None


def test_nan_is_no_perfect_match() -> None:
    x = torch.randn(100)
    assert sqnr(x, x) == 200 and sqnr(x, 1.1 * x) == pytest.approx(20, abs=0.01)
    for value in (math.nan, math.inf):
        y = x.clone()
        y[3] = value
        assert sqnr(x, y) is None and sqnr(y, x) is None
    y[3] = math.nan
    assert sqnr(y, y) is None
    huge = torch.full((4,), 1e30)  # whose square is no float32
    assert sqnr(huge, 1.1 * huge) == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize(
    ("content", "told"), [(b"a\nb\xe9", "line 2 is not in UTF-8"), (b"a" * (2**27 + 1), "longer than")]
)
def test_texts_that_are_none(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        plain_text(tmp_path / "x")
    with pytest.raises(ValueError, match="no plain file"):
        plain_text(tmp_path)
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf{}")
    assert plain_text(tmp_path / "bom") == "{}"
