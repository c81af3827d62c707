"""`zaq cocktail`: generators of several runs become one, and another run begins with it."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from conftest import QUICK, zaq_here
from torch import Tensor
from zoo import CARD, Impatient, quantized_net, saved, traced

from zaq.cli import main
from zaq.cocktail import STEPS, Original, cocktail, judged, originals, root, tune
from zaq.config.card import Card
from zaq.config.files import write_whole
from zaq.engine.images import IMAGES
from zaq.errors import SourceError
from zaq.methods import Flagship
from zaq.quantized import program_of
from zaq.run import TEACHER, Run
from zaq.synth.generator_file import opened
from zaq.synth.generators import Generator
from zaq.synth.merge import averaged

SMALL = {"synthesis.width": 8}


def run_of(folder: Path, net: str, seed: int, card: Card = CARD, **settings: object) -> Path:
    """What a run leaves of its network and its generator, without the file that it is for."""
    folder.mkdir()
    lengths = {"synthesis": 12, "refine": 0, "images": 32, "reconstruct": 0, "polish": 0, "game": 0} | settings
    method = Flagship(stage_constants=SMALL, **lengths)  # type: ignore[arg-type]
    quantized_net(net, "w8a8", method, card=card, seed=seed, keep=lambda c: write_whole(folder / IMAGES, c))
    Run(folder).write_program(TEACHER, program_of(traced(net)))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks of five classes, whose inputs are normalised in two ways."""
    folder = tmp_path_factory.mktemp("runs")
    other = Card(input=CARD.input, mean=(0.4,) * 3, std=(0.2,) * 3)
    return [run_of(folder / "a", "residual", 0), run_of(folder / "b", "concat", 1, other)]


@torch.no_grad()
def apart(original: Original, generator: Generator) -> float:
    """Mean |difference| of images to the original's, from the same canvases and classes."""
    torch.manual_seed(5)
    canvas, labels = original.generator.starts(64)
    difference: Tensor = generator(canvas, labels) - original.generator(canvas, labels)
    return float(difference.abs().mean())


def test_rooting_and_tuning_bring_images_nearer_to_those_of_the_originals(runs: list[Path]) -> None:
    one, other = originals(runs)
    begin, rooted = (root(other, one, steps) for steps in (0, 40))
    mixed = averaged([one.generator, rooted])
    far = [apart(other, g) for g in (begin, rooted)]
    before = [apart(o, g) for o, g in zip((one, other), mixed, strict=True)]
    tune((one, other), mixed, steps=20)
    after = [apart(o, g) for o, g in zip((one, other), mixed, strict=True)]
    assert far[1] < 0.8 * far[0] and sum(after) < 0.9 * sum(before), (far, before, after)


def test_equal_generators_make_one_that_draws_the_same(runs: list[Path]) -> None:
    """The condition routes: each network's own draw what it drew."""
    one, other = originals(runs)
    for original, mixed in zip((one, one), averaged([one.generator, one.generator]), strict=True):
        assert apart(original, mixed) < 1e-6
        assert judged(original, mixed) == judged(original, one.generator)
    assert apart(other, one.generator) > 0.1


@pytest.mark.slow  # as the command line does it, twice
def test_all_of_it(runs: list[Path]) -> None:
    """The same seed makes the same; what came out is what is judged last."""
    (mixed, found), (again, _) = (cocktail(runs, steps=3, seed=2) for _ in range(2))
    state, same = (m.generators[1].state_dict() for m in (mixed, again))
    assert all(torch.equal(v, same[k]) for k, v in state.items())
    assert [list(row) for row in found] == [["original", "average", "cocktail"]] * 2
    assert found[1]["cocktail"] == judged(originals(runs)[1], mixed.generators[1])
    assert mixed.made["seed"] == 2 and mixed.made["steps"] == 3


def test_by_the_command_line(runs: list[Path], tmp_path: Path) -> None:
    file, net = tmp_path / "painters.safetensors", saved("grouped", tmp_path / "net.pt2")
    assert next(p for p in main.commands["cocktail"].params if p.name == "steps").default == STEPS
    done = zaq_here("cocktail", *runs, "--steps", 2, "-o", file)
    assert done.exit_code == 0, done.stderr
    assert "no data read; zaq quantize MODEL --generator" in done.stdout and "cocktail: class" in done.stdout
    assert "root module, 2 steps" in done.stderr and [g.classes for g in opened(file).generators] == [5, 5]
    assert zaq_here("cocktail", *runs, "-o", file).exit_code == 2
    done = zaq_here("cocktail", *runs, "--steps", 0, "-o", file, "--overwrite", "--json", "-q")
    assert {"original", "average", "cocktail", "network"} == set(json.loads(done.stdout)["networks"][0])

    width = ("-s", "synthesis.width=8", "--normalize", "-1-1")
    done = zaq_here("quantize", net, *QUICK, *width, "--generator", file, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "synthesis: it begins as the generator of module" in done.stdout
    options = json.loads((tmp_path / "out" / "options.json").read_text())
    assert options["generator"] == options["call"]["generator"] == str(file)
    done = zaq_here("quantize", net, *QUICK, "--generator", file, "-o", tmp_path / "b")
    assert done.exit_code == 2 and "holds a painter (width 8)" in done.stderr and not (tmp_path / "b").exists()


def test_ctrl_c_leaves_nothing(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verb = importlib.import_module("zaq.cli.cocktail")  # the module; the package has the command by that name
    monkeypatch.setattr(verb, "progress", lambda level: Impatient("tune", 1))
    done = zaq_here("cocktail", *runs, "--steps", 2, "-o", tmp_path / "painters.safetensors")
    assert done.exit_code == 130 and "interrupted." in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("DIR/a -o out", "a cocktail is of two runs or more"),
        ("DIR/a DIR/a -o out", "each named once; one alone is taken as it is"),
        ("DIR/a DIR/c -o out", "DIR/c: there is no such file or folder"),
        ("DIR/a DIR/a/teacher.pt2 -o out", "teacher.pt2: is no folder; a run of zaq quantize is one"),
        ("DIR/a DIR -o out", "is no run of zaq quantize (teacher.pt2 missing)"),
        (
            "DIR/a RUN -o out",
            "of 3x32x32 rgb images, that of DIR/a a painter (width 8) of 3x16x16 rgb images; all have",
        ),
        ("DIR/a DIR/b -o nowhere/out", "nowhere/out: cannot be written (No such file or directory)"),
        ("DIR/a DIR/b -o DIR", "is a folder; -o names a file"),
    ],
)
def test_what_cannot_be_mixed_is_a_sentence(
    runs: list[Path], run: Path, words: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, why = (text.replace("DIR", str(runs[0].parent)).replace("RUN", str(run)) for text in (words, why))
    done = zaq_here("cocktail", *words.split())
    assert done.exit_code == 2 and why in done.stderr and done.stderr.count("zaq: ") == 1, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("net", "settings", "why"),
    [
        ("no_batch_norm", {}, "its network has no batch norm"),
        ("transposed", {}, "its generator knows no classes"),
        ("residual", {"generator": "biggan"}, "its generator is a BigGAN"),
        ("residual", {"generator": "dcgan"}, "its generator is a dcgan (latent 128"),
    ],
)
def test_so_is_what_a_run_lacks(
    runs: list[Path], net: str, settings: dict[str, object], why: str, tmp_path: Path
) -> None:
    other = run_of(tmp_path / "other", net, 0, synthesis=1, **settings)
    with pytest.raises(SourceError) as refused:
        originals([runs[0], other])
    assert str(refused.value).startswith(f"{other}: {why}"), refused.value


def test_quantize_takes_a_run_or_a_file_and_nothing_else(runs: list[Path], tmp_path: Path) -> None:
    net = saved("residual", tmp_path / "net.pt2")
    (tmp_path / "other.safetensors").write_bytes(b"no such file")
    for words, why in (
        (("--generator", tmp_path / "othr.safetensors"), "Did you mean"),
        (("--generator", tmp_path / "other.safetensors"), "is no file of zaq cocktail and no run"),
        (("--generator", runs[0], "--samples", runs[0]), "a run that takes images draws none; say one"),
        (("--generator", runs[0], "--method", "rtn"), "--method rtn has no synthesis that could begin so"),
    ):
        done = zaq_here("quantize", net, *words, "-o", tmp_path / "out")
        assert done.exit_code == 2 and why in done.stderr, done.stderr
