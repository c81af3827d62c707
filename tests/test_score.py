"""`zaq score` between runs, what their generators draw, and a data set."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import zaq_here
from PIL import Image
from zoo import saved


@pytest.fixture(scope="module")
def scored(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the shipped model, the same as a method leaves it that keeps no images, images of noise,
    and a model of another kind."""
    folder = tmp_path_factory.mktemp("scored")
    saved("grouped", folder / "other.pt2")
    (folder / "run").symlink_to(run)
    shutil.copytree(run, folder / "rounded", ignore=shutil.ignore_patterns("images.*"))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
    return folder


def score(folder: Path, real: str, drawn: str, *args: object):  # type: ignore[no-untyped-def]
    return zaq_here("score", *(spec.replace("DIR", str(folder)) for spec in (real, drawn)), *args)


def test_any_two(scored: Path) -> None:
    for real, drawn, counts in (
        ("DIR/run", "DIR/run", (128, 128)),
        ("held-out:DIR/run", "DIR/run", (256, 128)),
        ("images:DIR/images", "generator:DIR/run", (9, 1024)),
        ("held-out:DIR/rounded", "images:DIR/images", (256, 9)),
    ):
        done = score(scored, real, drawn, "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["real"], found["drawn"]) == counts
        assert 0 <= found["coverage"] <= 1 and found["expected"] > 0
        if real == drawn:
            assert found["precision"] == found["recall"] == found["coverage"] == found["density"] == 1
    done = score(scored, "held-out:DIR/run", "DIR/run", "--limit", 20, "--neighbours", 2)
    assert done.stdout.startswith("20 images against 20: precision") and "of one distribution" in done.stdout


def test_the_report_of_a_run_has_it_and_says_where_it_is_low(scored: Path) -> None:
    report = json.loads((scored / "run" / "report.json").read_text())
    found, told = report["covered"], [n for n in report["notes"] if "held-out images" in n]
    assert (found["real"], found["drawn"]) == (256, 128)
    assert bool(told) == (found["coverage"] < found["expected"] / 2)
    assert "Are they all alike?" in (scored / "run" / "report.html").read_text()


OTHER = ("--teacher", "DIR/other.pt2")


@pytest.mark.parametrize(
    ("real", "drawn", "options", "said"),
    [
        ("DIR/rounded", "DIR/run", (), "cannot be read (No such file or directory); a run has it where"),
        ("held-aut:DIR/run", "DIR/run", (), "unknown kind of images 'held-aut'. Did you mean 'held-out'?"),
        (
            "DIR/nothing",
            "DIR/run",
            (),
            "is no folder; a run of zaq quantize is one. A data set is written as kind:PATH",
        ),
        ("DIR/images", "DIR/run", (), "cannot be read"),
        ("DIR/run", "held-out:DIR/run", OTHER, "were drawn for another model"),
        ("held-out:DIR/run", "held-out:DIR/run", OTHER, "is a run of another model, resnet20_cifar10"),
        ("images:DIR/run", "DIR/run", (), "holds no images"),
        ("DIR/run", "images:DIR/images", ("--limit", 4), "4 images are too few: with 5 neighbours"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(  # type: ignore[no-untyped-def]
    scored: Path, real: str, drawn: str, options, said: str
) -> None:
    done = score(scored, real, drawn, *(str(option).replace("DIR", str(scored)) for option in options))
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("zaq: ") == 1, done.stderr
