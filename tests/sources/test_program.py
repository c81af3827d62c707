"""Models as .pt2: what loads, and that no part of one is ever unpickled."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import build, images

from zaq.errors import SourceError, TraceError
from zaq.ir.capture import quiet
from zaq.sources import load


def save(model: nn.Module, path: Path, batch: bool = True) -> Path:
    shapes = ({0: torch.export.Dim.AUTO},) if batch else None
    with quiet():
        example = images(2).to(next(model.parameters()).dtype)
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), path)
    return path


def test_a_saved_program_is_the_model(tmp_path: Path) -> None:
    model = build("residual")
    source = load(str(save(model, tmp_path / "net.pt2")))
    torch.testing.assert_close(source.graph(images()), model(images()))
    assert source.name == "net" and source.card.input == (3, 16, 16) and not source.card.knows_pixels
    assert len(source.sha256) == 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_read_as_float32_and_said(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("pools").to(dtype)
    source = load(str(save(model, tmp_path / "net.pt2")))
    torch.testing.assert_close(source.graph(images()), model.float()(images()), atol=1e-5, rtol=1e-4)
    assert len(source.notes) == 1 and f"stored in {str(dtype)[6:]};" in source.notes[0]


def test_card_beside_the_file_and_flags_over_it(tmp_path: Path) -> None:
    path = save(build("residual"), tmp_path / "net.pt2")
    path.with_suffix(".json").write_text(
        json.dumps({"mean": [0.1] * 3, "std": [0.2] * 3, "resize": 20, "author": "them"})
    )
    assert load(str(path)).card.mean == (0.1,) * 3
    card = load(str(path), {"std": (0.5,) * 3}).card
    assert card.mean == (0.1,) * 3 and card.std == (0.5,) * 3 and card.resize == 20
    with pytest.raises(SourceError, match=r"inputs of \(3, 16, 16\), card or flags say \(3, 32, 32\)"):
        load(str(path), {"input": (3, 32, 32)})


@pytest.mark.parametrize(
    ("card", "message"),
    [("{", "not readable as JSON"), ("[1]", "not an object"), ('{"mean": [0.5, 0.5, 0.5]}', "come together"),
     ('{"mean": "x", "std": [1, 1, 1]}', "list of numbers"), ('{"mean": [0, 0, 0], "std": [1, 0, 1]}', "positive")],
)  # fmt: skip
def test_a_broken_card_is_named(card: str, message: str, tmp_path: Path) -> None:
    path = save(build("pools"), tmp_path / "net.pt2")
    path.with_suffix(".json").write_text(card)
    with pytest.raises(SourceError, match=f"net.json.*{message}"):
        load(str(path))


class Bomb:
    """Unpickling this raises: a test that sees the error has seen the pickle being run."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_called_pt2_is_refused_unread(tmp_path: Path) -> None:
    torch.save(Bomb(), tmp_path / "model.pt2")
    with pytest.raises(SourceError, match="this is a pickle"):
        load(str(tmp_path / "model.pt2"))


@pytest.mark.parametrize("where", ["use_pickle", "constants", "expression"])
def test_a_pickle_inside_a_pt2_is_refused_unread(where: str, tmp_path: Path) -> None:
    good, bad = save(build("residual"), tmp_path / "good.pt2"), tmp_path / "bad.pt2"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as new:
        for item in old.namelist():
            data = old.read(item)
            if where == "use_pickle" and item.endswith("weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            elif where == "constants" and item.endswith("constants_config.json"):
                data = b'{"config": {"c": {"path_name": "opaque_obj_0"}}}'
            elif where == "expression" and "/models/" in item:
                text = data.decode()
                start = text.index("Symbol(")
                data = (text[:start] + "__import__(" + text[start + len("Symbol(") :]).encode()
            new.writestr(item.replace("good/", "bad/"), data)
    with pytest.raises(SourceError, match=r"bad\.pt2: "):
        load(str(bad))


def test_what_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"hello")
    (tmp_path / "b.jpg").write_bytes(b"hello")
    with zipfile.ZipFile(tmp_path / "c.pt2", "w") as archive:
        archive.writestr("readme.txt", "hello")
    truncated = save(build("pools"), tmp_path / "d.pt2").read_bytes()
    (tmp_path / "d.pt2").write_bytes(truncated[: len(truncated) // 2])
    cases = [
        ("a.pt2", "not an archive"),
        ("b.jpg", r"'\.jpg'"),
        ("c.pt2", "no exported program"),
        ("d.pt2", "not an archive"),
        ("none.pt2", "no such file"),
    ]
    for name, message in cases:
        with pytest.raises(SourceError, match=message):
            load(str(tmp_path / name))


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="fixed to 2"):
        load(str(save(build("residual"), tmp_path / "net.pt2", batch=False)))
