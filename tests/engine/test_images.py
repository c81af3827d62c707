"""Images of one run in the place of those that another would draw."""

from pathlib import Path

import pytest
import torch
from conftest import zaq_here
from torch import Tensor
from zoo import CARD, quantized_net, saved

from zaq.api import Quantized
from zaq.config.card import Card
from zaq.config.files import write_whole
from zaq.engine.images import IMAGES, images_in
from zaq.engine.snapshot import Content
from zaq.errors import BitsError, SourceError
from zaq.methods import ACIQ, DFQ, GDFQ, RTN, ZAQ, DeepInversion, Flagship, ZeroQ
from zaq.methods.base import Method

OURS = Flagship(synthesis=3, refine=2, images=64, reconstruct=2, polish=4, game=1)
KINDS: dict[str, Method] = {
    "flagship": OURS,
    "zeroq": ZeroQ(steps=3, batch=16),
    "deepinversion": DeepInversion(steps=3, images=16, finetune=3),
    "zaq": ZAQ(warm_up=3, rounds=2),
    "aciq": ACIQ(statistics="synthetic"),
}


def made(folder: Path, method: Method, bits: str = "w4a4", samples: Path | None = None) -> Quantized:
    folder.mkdir(exist_ok=True)

    def keep(content: Content) -> None:
        write_whole(folder / IMAGES, content)

    return quantized_net("residual", bits, method, card=CARD, keep=keep, samples=samples)


def same(a: Quantized, b: Quantized) -> bool:
    one, other = a.module.state_dict(), b.module.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", KINDS)
def test_a_runs_own_images_make_the_same_student(name: str, tmp_path: Path) -> None:
    first = made(tmp_path / "a", KINDS[name])
    again = made(tmp_path / "b", KINDS[name], samples=tmp_path / "a")
    assert same(first, again) and not (tmp_path / "b" / IMAGES).exists()
    drawn = {"synthesis", "held-out synthesis", "refine", "held-out refine", "distil", "warm-up"}
    assert not drawn & {s["name"] for s in again.report["stages"]}
    assert any("it learns from the images of" in note for note in again.report["notes"])


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made(folder := tmp_path_factory.mktemp("left") / "run", OURS)
    return folder


@pytest.mark.parametrize("method", [RTN(), DFQ(), *(KINDS[n] for n in ("zeroq", "deepinversion", "zaq"))])
def test_other_methods_and_bits_learn_from_them(method: Method, left: Path, tmp_path: Path) -> None:
    """More than half of what they calibrate on are the images of the run; deepinversion holds some of them out."""
    other = made(tmp_path / "b", method, "w3a5", left)
    found, taken = other.state.images, images_in(left, {"sha256": None, "card": other.card})["images"]
    assert isinstance(taken, Tensor) and found is not None
    there = (found[:, None] == taken[None]).flatten(2).all(2).any(1)
    assert float(there.float().mean()) > 0.5


def test_what_is_not_worth_a_file_is_in_none(tmp_path: Path) -> None:
    made(tmp_path / "a", RTN())
    assert not (tmp_path / "a" / IMAGES).exists()
    with pytest.raises(SourceError, match="cannot be read"):
        made(tmp_path / "b", RTN(), samples=tmp_path / "a")


def test_what_cannot_be_taken_is_refused(left: Path, tmp_path: Path) -> None:
    with pytest.raises(BitsError, match="--method gdfq draws its images while the student learns"):
        made(tmp_path / "b", GDFQ(), samples=left)
    made(tmp_path / "z", KINDS["zeroq"])
    with pytest.raises(BitsError, match="there is no generator of that run's, which --method zaq"):
        made(tmp_path / "b", KINDS["zaq"], samples=tmp_path / "z")
    with pytest.raises(SourceError, match="another model, or the same with another card"):
        quantized_net("residual", "w4a4", RTN(), card=Card(input=CARD.input), samples=left)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / IMAGES).write_bytes((left / IMAGES).read_bytes()[:-1000])
    with pytest.raises(SourceError, match="is damaged"):
        made(tmp_path / "b", RTN(), samples=torn)


def test_by_the_command_line(tmp_path: Path) -> None:
    path = saved("residual", tmp_path / "net.pt2")
    few = ("--effort", "fast", "-s", "synthesis=2", "-s", "images=64", "-s", "refine=1", "-s", "reconstruct=1")
    assert zaq_here("quantize", path, *few, "-o", tmp_path / "a").exit_code == 0
    done = zaq_here("quantize", path, *few, "--samples", tmp_path / "a", "-o", tmp_path / "b")
    assert done.exit_code == 0 and f"it learns from the images of {tmp_path / 'a'}" in done.stdout
    parts = [(tmp_path / run / "samples.safetensors").read_bytes() for run in "ab"]
    assert parts[0] == parts[1]
    other = saved("concat", tmp_path / "other.pt2")
    done = zaq_here("quantize", other, *few, "--samples", tmp_path / "a", "-o", tmp_path / "c")
    assert done.exit_code == 2 and "drawn for another model" in done.output
