"""The float network beside the file: what was lost, how sure that is, and in which class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import zaq_here
from zoo import saved

from zaq.evaluate import Score, ranked, score_of
from zaq.evaluate.compare import Measured

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
OURS, THEIRS = np.array([0, 0, 1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 1, 1, 1])
BOTH = Measured(Score.of(OURS, LABELS), Score.of(THEIRS, LABELS), (OURS, THEIRS), LABELS)
ALONE = Measured(Score.of(OURS, LABELS), None, (OURS,), LABELS)


def test_what_was_lost_is_of_the_same_images() -> None:
    fields = BOTH.fields()
    assert fields["drop"] == {"top1": 25.0} and fields["agreement"] == 75.0 and fields["float"]["correct"] == 7
    differences = np.array([0, 0, 1, 0, 0, 0, 0, 1])
    assert fields["drop_interval"] == pytest.approx(100 * 1.96 * differences.std() / 8**0.5)
    assert BOTH.lost() == "lost: 25.00 of top1 (+-30.01) points; the same answer on 75.00 % of images"
    assert ALONE.lost() == "" and "drop" not in ALONE.fields()


def test_the_class_that_lost_most_stands_first() -> None:
    assert BOTH.classes() == [
        {"class": 0, "images": 4, "top1": 50.0, "float": 75.0, "drop": 25.0},
        {"class": 1, "images": 4, "top1": 75.0, "float": 100.0, "drop": 25.0},
    ]
    assert [row["class"] for row in ALONE.classes()] == [0, 1] and "float" not in ALONE.classes()[0]


def test_top5_counts_the_first_five() -> None:
    ranks = np.array([[1, 2, 3, 4, 5], [0, 9, 8, 7, 6]])
    assert score_of(ranks, np.array([5, 1])) == Score(0, 2, 1) and score_of(ranks[:, :1], np.array([1, 0])) == Score(
        2, 2
    )
    score = score_of(ranks, np.array([1, 6]))
    assert str(score).endswith("1 of 2 images), top-5 100.00 %") and score.fields()["top5"] == 100.0


class Six(torch.nn.Module):
    """Pixels of the first row as six outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0, :6]


def test_ranks_are_those_of_the_outputs(tmp_path: Path) -> None:
    from zaq.config.card import Card

    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[0, 0, :6, 0], images[1, 0, :6, 0] = [5, 9, 1, 2, 3, 4], [7, 7, 0, 1, 2, 3]
    np.savez(tmp_path / "six.npz", images=images, labels=np.array([1, 2]))
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), Six())
    torch.nn.init.dirac_(module[0].weight), torch.nn.init.zeros_(module[0].bias)  # type: ignore[arg-type]
    card = Card(input=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    ranks, labels = ranked(module, f"npz:{tmp_path / 'six.npz'}", card)
    assert ranks.tolist() == [[1, 0, 5, 4, 3], [0, 1, 5, 4, 3]] and labels.tolist() == [1, 2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a toy of five classes, and some images."""
    folder = tmp_path_factory.mktemp("compare")
    saved("residual", folder / "net.pt2")
    (folder / "net.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3, "classes": 5}))
    done = zaq_here("quantize", folder / "net.pt2", "--bits", "w4a4", "--method", "rtn", "-q", "-o", folder / "run")
    assert done.exit_code == 0, done.output
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "set.npz", images=images, labels=np.arange(40) % 5)
    return folder


def test_eval_of_a_run_says_both_and_what_was_lost(made: Path) -> None:
    data = f"npz:{made / 'set.npz'}"
    done = zaq_here("eval", made / "run", "--data", data, "--per-class")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("float: top-1 ") and lines[1].startswith("w4a4: top-1 ")
    assert lines[2].startswith("lost: ") and "the same answer on" in lines[2]
    assert lines[3].split() == ["class", "images", "float", "ours", "lost"] and len(lines) == 9
    assert "eval float, 1 step" in done.stderr and "eval, 1 step" in done.stderr


def test_eval_as_json_says_of_what(made: Path) -> None:
    data, path = f"npz:{made / 'set.npz'}", made / "run" / "model.onnx"
    found = json.loads(zaq_here("eval", made / "run", "--data", data, "--limit", 20, "--json", "-q").stdout)
    assert {k: found[k] for k in ("file", "data", "limit", "task")} == {
        "file": str(path), "data": data, "limit": 20, "task": "classification",
    }  # fmt: skip
    assert found["total"] == found["float"]["total"] == 20 and found["drop"]["top1"] == pytest.approx(
        found["float"]["top1"] - found["top1"]
    )
    alone = json.loads(zaq_here("eval", path, "--data", data, "--limit", 20, "--json", "-q").stdout)
    assert alone["correct"] == found["correct"] and "float" not in alone


def test_a_file_of_anybody_is_measured_where_normalize_says_how(made: Path) -> None:
    """The float form of another exporter: no property of zaq's."""
    import onnx

    model = onnx.load(made / "run" / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, made / "bare.onnx")
    data = f"npz:{made / 'set.npz'}"
    told = zaq_here("eval", made / "bare.onnx", "--data", data)
    assert told.exit_code == 2 and "say --normalize" in told.stderr
    done = zaq_here("eval", made / "bare.onnx", "--data", data, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    assert done.exit_code == 0 and done.stdout.startswith("top-1 "), done.output
    told = zaq_here("eval", made / "run", "--data", data, "--task", "segmentation", "--per-class")
    assert told.exit_code == 2 and "--per-class goes with --task classification" in told.stderr
