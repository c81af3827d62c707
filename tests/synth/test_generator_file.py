"""The file of a cocktail holds all that it draws by, and a changed one is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from test_merge import CARD, dcgan, drawn, painter
from torch import Tensor

from zaq.config.card import Card
from zaq.engine.images import IMAGES
from zaq.engine.snapshot import Content
from zaq.errors import SourceError
from zaq.synth.biggan import BigGAN
from zaq.synth.generator_file import HEAD, content, opened
from zaq.synth.generators import DCGAN
from zaq.synth.leaves import Painter
from zaq.synth.merge import Cocktail, Of, averaged, shared

OF = [Of("one", "0" * 64), Of("other", None)]
Tensors = dict[str, Tensor]


def mixed(kind: Any = painter) -> Cocktail:
    return Cocktail(OF, averaged([kind(0), kind(1, 7)]), {"root": "one", "steps": 3, "seed": 0})


@pytest.mark.parametrize("kind", [painter, dcgan])
def test_it_draws_the_same_when_it_is_read_again(kind: Any, tmp_path: Path) -> None:
    made = mixed(kind)
    made.generators[1].drawn = torch.tensor([0, 6])
    (path := tmp_path / "mixed.safetensors").write_bytes(content(made))
    read = opened(path)
    assert read.of == OF and read.made == made.made and [g.classes for g in read.generators] == [5, 7]
    assert read.generators[1].drawn.tolist() == [0, 6] and read.generators[0].card == CARD
    for before, after in zip(made.generators, read.generators, strict=True):
        assert torch.equal(drawn(before, 4), drawn(after, 4))
    assert all(p is shared(read.generators[1])[name] for name, p in shared(read.generators[0]).items())


def test_gdfqs_generator_keeps_its_constants(tmp_path: Path) -> None:
    one = DCGAN(CARD, 8, 8, 5, doublings=2, eps=0.8, tanh=True)
    (path := tmp_path / "one.safetensors").write_bytes(content(Cocktail(OF[:1], [one])))
    assert torch.equal(drawn(opened(path).generators[0], 2), drawn(one, 2))


def said(*place: Any, to: Any) -> Callable[[dict[str, Any], Tensors], None]:
    """What changes a place in the head."""

    def change(head: dict[str, Any], tensors: Tensors) -> None:
        at: Any = head
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = to

    return change


def put(name: str, value: Tensor) -> Callable[[dict[str, Any], Tensors], None]:
    """What puts a tensor there."""
    return lambda head, tensors: tensors.update({name: value})


def drop(name: str) -> Callable[[dict[str, Any], Tensors], None]:
    """What takes a tensor away."""
    return lambda head, tensors: tensors.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (said("version", to=2), "version: Input should be 1"),
        (said("architecture", to="os.system"), "architecture: Input should be 'dcgan' or 'painter'"),
        (said("more", to=1), "more: Extra inputs are not permitted"),
        (said("sizes", "width", to=10**9), "sizes.width"),
        (said("sizes", "width", to=16), "not torch.float32 (16, 3, 3, 3)"),
        (said("sizes", "depth", to=3), "unexpected keyword argument 'depth'"),
        (said("networks", to=[]), "networks: List should have at least 1 item"),
        (said("networks", 0, "classes", to=6), "'one' has no table of 6 classes"),
        (said("networks", 0, "classes", to="5"), "networks.0.classes: Input should be a valid integer"),
        (said("networks", 0, "sha256", to="../x"), "networks.0.sha256"),
        (said("networks", 0, "card", "std", to=[0, 0, 0]), "std.0 is 0"),
        (said("networks", 0, "card", "input", to=[3, 2**20, 2**20]), "no model takes an image"),
        (put("0.drawn", torch.tensor([5])), "the classes that are drawn are none of the 5"),
        (put("0.drawn", torch.tensor([], dtype=torch.int64)), "the classes that are drawn are none of the 5"),
        (put("shared.last.bias", torch.full((3,), torch.nan)), "last.bias is NaN or infinite"),
        (put("shared.last.bias", torch.zeros(3, dtype=torch.float64)), "last.bias is torch.float64 (3,)"),
        (put("2.drawn", torch.zeros(1)), "2.drawn is of no network that the head names"),
        (drop("shared.last.bias"), "lacks a part of it ('last.bias')"),
    ],
)
def test_a_changed_file_is_refused(change: Callable[..., None], why: str, tmp_path: Path) -> None:
    whole = content(mixed())
    tensors, length = load(whole), int.from_bytes(whole[:8], "little")
    head = json.loads(json.loads(whole[8 : 8 + length])["__metadata__"][HEAD])
    change(head, tensors)
    (path := tmp_path / "changed.safetensors").write_bytes(save(tensors, {HEAD: json.dumps(head)}))
    with pytest.raises(SourceError) as refused:
        opened(path)
    assert str(refused.value).startswith(f"{path}: ") and why in str(refused.value), refused.value


@pytest.mark.parametrize("text", [b"", b"no safetensors at all", save({"a": torch.zeros(1)})])
def test_another_file_is_refused(text: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "other.safetensors").write_bytes(text)
    with pytest.raises(SourceError, match=r"(is no file of|was not written by) zaq cocktail"):
        opened(path)


@pytest.mark.parametrize(
    ("generator", "why"),
    [
        (None, "its method kept no generator"),
        (BigGAN(Card(input=(3, 16, 16)), 16, 8, 5), "its generator is a BigGAN"),
        (Painter(CARD, 8), "its generator knows no classes"),
    ],
)
def test_a_run_that_kept_no_such_generator_is_refused(generator: Any, why: str, tmp_path: Path) -> None:
    found = {"images": None, "samples": None, "held_out": False, "generator": generator}
    content = Content({"model": {"name": "net", "sha256": None, "card": CARD}, "found": found})
    (tmp_path / IMAGES).write_bytes(b"".join(content))
    with pytest.raises(SourceError, match=why):
        opened(tmp_path)
