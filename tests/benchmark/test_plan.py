"""A plan: what stands in a file or in flags becomes cells, each with an id of its own."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from zaq.benchmark.plan import Cell, cells_of, read_plan, shard
from zaq.errors import BitsError, UserError

DIGEST = "f09798e0"  # of the one cell of `cells()`


def identify(model: str) -> tuple[str, str]:
    return Path(model).stem.rpartition(":")[2], "hash of " + Path(model).name


def cells(folder: Path = Path("/here"), **block: Any) -> list[Cell]:
    return cells_of({"models": ["net.pt2"], "data": "cifar10:data", **block}, folder, "here", identify)


def plan(folder: Path, text: str) -> list[Cell]:
    (folder / "plan.yaml").write_text(text)
    return read_plan(folder / "plan.yaml", identify)


def test_every_combination_seed_after_seed() -> None:
    found = cells(bits="w8a8,w4a4", methods="rtn,zaq", placements="integer,gdfq", seeds=2)
    assert len(found) == len({c.id for c in found}) == 16
    assert [c.seed for c in found] == [0] * 8 + [1] * 8
    assert [(c.placement, c.bits, c.method) for c in found[:3]] == [
        ("integer", "w8a8", "rtn"),
        ("integer", "w8a8", "zaq"),
        ("integer", "w4a4", "rtn"),
    ]


def test_brackets_hold_settings_whose_values_may_have_commas() -> None:
    found = cells(methods="rtn,zaq[alpha=0, relation=gram],zaq[milestones=0.5,0.7,lr_bias = 1e-3]")
    assert [(c.name, c.method, c.settings) for c in found] == [
        ("rtn", "rtn", ()),
        ("zaq[alpha=0, relation=gram]", "zaq", ("alpha=0", "relation=gram")),
        ("zaq[milestones=0.5,0.7,lr_bias = 1e-3]", "zaq", ("lr_bias=1e-3", "milestones=0.5,0.7")),
    ]


def test_a_task_and_its_constants_are_part_of_a_cell_that_names_them() -> None:
    """A cell that does not keeps the id it had before there were tasks."""
    (plain,), (named,) = cells(), cells(task="detection", decode="heads.json")
    assert (plain.task, plain.decode) == (None, None) and plain.id.endswith("-s0-" + DIGEST)
    assert named.task == "detection" and named.decode == "/here/heads.json" and named.id != plain.id


def test_the_command_is_what_a_user_would_type() -> None:
    cell = cells(methods="zaq[alpha=0]", effort="fast", seeds=[3])[0]
    assert " ".join(cell.command(Path("out"))) == (
        "quantize /here/net.pt2 --method zaq --bits w4a4 --seed 3 --effort fast -s alpha=0 -o out"
    )
    cell = cells(methods="ft", placements="gdfq", weights="per_tensor", first_last="same")[0]
    words = " ".join(cell.command(Path("out")))
    assert "--placement gdfq --weights per_tensor --first-last same --data cifar10:/here/data -o out" in words


def test_an_id_is_readable_and_changes_with_whatever_defines_the_cell() -> None:
    cell = Cell(
        "/here/net.pt2", "net", "hash of net.pt2", "cifar10:/here/data", "w4a4", "zaq", "zaq, no D_f", ("alpha=0",)
    )
    assert cell.id == "net-zaq_no_D_f-w4a4-integer-s0-1acbc25b"  # the same next year: results on disk are found by it
    changes = {
        "model_hash": "x",
        "data": "csv:x",
        "bits": "w3a3",
        "method": "rtn",
        "settings": (),
        "placement": "gdfq",
        "limit": 9,
        "weights": "per_tensor",
        "first_last": "same",
        "seed": 1,
        "effort": "fast",
    }
    digests = {dataclasses.replace(cell, **{k: v}).id.rpartition("-")[2] for k, v in changes.items()}  # type: ignore[arg-type]
    assert len(digests) == len(changes) and cell.id.rpartition("-")[2] not in digests
    assert dataclasses.replace(cell, model="/elsewhere/net.pt2").id == cell.id  # a model that was moved is the same


def test_a_yaml_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES", "/images")
    text = """
        data: cifar10:$IMAGES/here
        effort: fast
        settings: {rounds: 2}
        runs:
          - models: [nets/a.pt2, zoo:resnet20_cifar10]
            methods:
              - name: zaq, no D_f
                method: zaq
                effort: best
                settings: {alpha: 0, bns: null, layer_weights: false, milestones: [0.5, 0.7]}
                seeds: 1
              - zaq
            seeds: [1, 4]
          - models: ~/b.pt2
            bits: [w8a8]
            first_last: 4
    """
    found = plan(tmp_path, text)
    # the mapping has one seed of its own; both models; then the second run
    assert sorted({(c.model_name, c.name, c.seed) for c in found}) == [
        ("a", "zaq", 1),
        ("a", "zaq", 4),
        ("a", "zaq, no D_f", 0),
        ("b", "zaq", 0),
        ("resnet20_cifar10", "zaq", 1),
        ("resnet20_cifar10", "zaq", 4),
        ("resnet20_cifar10", "zaq, no D_f", 0),
    ]
    first = found[0]
    assert first.settings == ("alpha=0", "bns=none", "layer_weights=false", "milestones=0.5,0.7", "rounds=2")
    assert (
        first.model == str(tmp_path / "nets" / "a.pt2")
        and first.data == "cifar10:/images/here"
        and first.effort == "best"
    )
    last = next(c for c in found if c.model_name == "b")
    assert last.model == str(Path.home() / "b.pt2") and last.first_last == "4" and last.settings == ("rounds=2",)
    assert {c.limit for c in read_plan(tmp_path / "plan.yaml", identify, limit=7)} == {7}


# Ten to the ninth words, once somebody writes them out.
LAUGHS = (
    "[&a [x, x, x, x, x, x, x, x, x, x]"
    + "".join(f", &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: [", "is not readable as YAML"),
        ("a: !!timestamp x", "is not readable as YAML"),
        ("a: !!int ''", "is not readable as YAML"),
        ("a: !!bool x", "is not readable as YAML"),
        (f"{{models: a.pt2, data: 'x:y', first_last: '{'9' * 5000}'}}", "or 'same'"),
        ("- models", "a plan is a mapping with the key runs, not a list"),
        ("rums: []", "unknown key 'rums'. Did you mean 'runs'?"),
        ("runs: []", "runs is a list of mappings"),
        ("runs: [{modles: [a.pt2]}]", "runs[0]: unknown key 'modles'. Did you mean 'models'?"),
        ("runs: [{models: [a.pt2]}]", "runs[0]: data missing"),
        ("{models: a.pt2, data: 'x:y', bits: w9a9}", "2 to 8 are supported"),
        ("{models: a.pt2, data: 'x:y', placements: gdqf}", "Did you mean 'gdfq'?"),
        ("{models: a.pt2, data: 'x:y', weights: per_chanel}", "Did you mean 'per_channel'?"),
        ("{models: a.pt2, data: 'x:y', effort: fats}", "Did you mean 'fast'?"),
        ("{models: a.pt2, data: 'x:y', seeds: 0}", "at least 1"),
        ("{models: a.pt2, data: 'x:y', seeds: 100000000}", "at most 1000"),
        (f"{{models: a.pt2, data: 'x:y', seeds: {LAUGHS}}}", "seeds [['x', 'x'"),
        (f"{{models: a.pt2, data: 'x:y', settings: {{alpha: {LAUGHS}}}}}", "a value is expected, or a list of values"),
        (
            f"{{models: a.pt2, data: 'x:y', bits: {['w8a8'] * 120}, placements: {['gdfq'] * 120}, seeds: 10}}",
            "more than 100000 runs",
        ),
        ("[" * 100000, "is not readable as YAML"),
        ("{models: a.pt2, data: 'x:y', limit: few}", "a number of images"),
        ("{models: a.pt2, data: 'x:y', first_last: some}", "or 'same'"),
        ("{models: a.pt2, data: 'x:y', settings: [alpha]}", "settings is a mapping"),
        ("{models: a.pt2, data: 'x:y', methods: ['zaq[alpha=1']}", "is not of the form name or name[key=value,...]"),
        ("{models: a.pt2, data: 'x:y', methods: [{method: zaq, sedes: 1}]}", "Did you mean 'seeds'?"),
        ("{models: [3], data: 'x:y'}", "a text is expected, not 3"),
    ],
)
def test_mistakes_are_sentences_that_name_the_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, BitsError), match=re.escape(message)) as caught:
        plan(tmp_path, text)
    assert str(tmp_path / "plan.yaml") in str(caught.value)


def test_shards_take_every_cell_once_from_0_or_from_1() -> None:
    found = cells(bits="w8a8,w6a6,w4a4", seeds=5)
    for first in (0, 1):
        parts = [shard(found, f"{i}/4") for i in range(first, first + 4)]
        assert sorted(c.id for part in parts for c in part) == sorted(c.id for c in found)
        assert sorted(map(len, parts)) == [3, 4, 4, 4]
    for wrong in ("4", "5/4", "0/0", "-1/4", "a/b"):
        with pytest.raises(UserError, match="I/N is expected"):
            shard(found, wrong)
