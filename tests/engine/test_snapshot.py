"""Snapshots: what they hold comes back the same, damaged ones are noticed, and a run that goes on ends as it would."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import CARD, SHAPE, traced

from zaq.api import Quantized, quantize_graph
from zaq.config.bits import QConfig
from zaq.engine import snapshot
from zaq.engine.journal import Log
from zaq.engine.snapshot import KNOWN, Remade, Snapshots, Unsaved, pack, run_of, unpack
from zaq.methods import Method
from zaq.methods.deepinversion import DeepInversion
from zaq.methods.dfq import DFQ
from zaq.methods.flagship import Flagship
from zaq.methods.gdfq import GDFQ
from zaq.methods.zaq import ZAQ
from zaq.methods.zeroq import ZeroQ
from zaq.synth.adapter import Photographs
from zaq.synth.generators import DCGAN
from zaq.synth.leaves import Painter
from zaq.synth.losses import relative_discrepancy


def again(value: Any) -> Any:
    tensors: dict[str, Tensor] = {}
    told = pack(value, tensors)
    return unpack(told, {k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items()})


def test_plain_values_come_back_as_they_were() -> None:
    value = {"a": [1, 2.5, None, True, "x"], 3: (0, ("y",)), "nothing": {}, "far": [math.inf, -math.inf]}
    assert again(value) == value
    assert math.isnan(again(math.nan)) and again(CARD) == CARD and again(QConfig.parse("w4a4")) == QConfig.parse("w4a4")


def test_a_tensor_lies_as_it_lay_and_one_in_two_places_stays_one() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    some = {"x": x, "y": x, "i": torch.arange(3), "b": torch.tensor([True]), "gap": torch.randn(4, 4)[:, :2]}
    found = again(some)
    assert found["x"] is found["y"] and found["x"].stride() == x.stride()
    assert all(torch.equal(found[k], some[k]) and found[k].dtype == some[k].dtype for k in some)


@pytest.mark.parametrize("make", [lambda: Painter(CARD, 8, 5), lambda: DCGAN(CARD, 4, width=8, doublings=2)])
def test_a_generator_draws_what_it_drew(make: Callable[[], Any]) -> None:
    one = make()
    if one.classes:
        one.drawn = torch.tensor([1, 3])  # of five
    one.sample(8)  # its batch norms remember
    other = again(one)
    for g in (one, other):
        torch.manual_seed(0)
        g.images, g.labels = g.sample(8)
    assert torch.equal(one.images, other.images)
    assert one.labels is None or torch.equal(one.labels, other.labels)


def test_functions_come_back_by_name_and_no_other_is_called() -> None:
    assert again(relative_discrepancy) is relative_discrepancy
    with pytest.raises(Unsaved, match="can hold a function"):
        pack(lambda: 0, {})
    with pytest.raises(KeyError):
        unpack({"known": "os:system"}, {})
    with pytest.raises(KeyError):
        unpack({"made": "os:system", "args": ["true"], "named": {}}, {})
    assert not any(name.startswith(("os", "builtins", "subprocess")) for name in KNOWN)


def test_a_module_of_another_kind_is_refused() -> None:
    with pytest.raises(Unsaved, match="hold a Linear"):
        pack({"generator": nn.Linear(2, 2)}, {})


class Mine(Remade, nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)


def test_a_module_of_the_users_own_is_made_by_the_same_call() -> None:
    one = Mine(width=3)
    assert torch.equal(again(one).layer.weight, one.layer.weight)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(snapshot, "COST", 0)
    return tmp_path / "snapshots"


def written(folder: Path, count: int, run: dict[str, Any]) -> list[Path]:
    snapshots = Snapshots(folder, run, every=0)
    for i in range(count):
        snapshots.offer(lambda i=i: {"number": i, "x": torch.full((3,), i)})  # type: ignore[misc]
    return sorted(folder.iterdir())


def test_the_newest_two_are_kept_and_the_newest_is_read(folder: Path) -> None:
    paths = written(folder, 5, {"seed": 0})
    assert len(paths) == 2
    assert Snapshots(folder, {"seed": 0}).newest()["number"] == 4
    assert run_of(folder) == ({"seed": 0}, {})


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "another", "link", "text"])
def test_a_damaged_or_foreign_one_is_noticed_and_the_one_before_is_taken(folder: Path, damage: str) -> None:
    newest = written(folder, 3, {"seed": 0})[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        newest.write_bytes(content)
    elif damage in ("cut", "empty"):
        newest.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    elif damage == "gone":
        newest.unlink()
    elif damage == "another":
        newest.unlink()
        written(folder, 1, {"seed": 1})
    elif damage == "link":
        newest.rename(folder / "elsewhere")
        newest.symlink_to(folder / "elsewhere")
    else:
        (folder / "snapshot-x-y.safetensors").write_text("{}")
    said: list[str] = []
    found = Snapshots(folder, {"seed": 0}, say=said.append).newest()
    assert found["number"] == (2 if damage == "text" else 1)
    expected = {"flip": "damaged", "cut": "damaged", "empty": "damaged", "another": "of another run"}
    assert expected.get(damage, "") in " ".join(said)


def test_no_more_often_than_asked(folder: Path) -> None:
    snapshots = Snapshots(folder, {}, every=3600)
    snapshots.offer(lambda: {"number": 0})
    assert not folder.exists()
    snapshots.offer(lambda: {"number": 1}, stage_ended=True)
    assert Snapshots(folder, {}).newest()["number"] == 1


def test_what_cannot_be_saved_is_said_once_and_the_run_goes_on(folder: Path) -> None:
    said: list[str] = []
    snapshots = Snapshots(folder, {}, every=0, say=said.append)
    for _ in range(3):
        snapshots.offer(lambda: {"x": object()})
    assert len(said) == 1 and "hold a object" in said[0]


def test_a_full_disk_costs_the_snapshot_not_the_run(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    said: list[str] = []
    Snapshots(folder, {}, every=0, say=said.append).offer(lambda: {"x": 1})
    assert "no snapshot could be written" in said[0]


class Killed(BaseException):
    """As kill -9: nothing catches it."""


class Deadly(Log):
    """A log whose process dies when it has that many rows."""

    dies_at = -1

    def __call__(self, stage: str, step: int, **values: float) -> None:
        if len(self.rows) == self.dies_at:
            raise Killed
        super().__call__(stage, step, **values)


RECIPE = Flagship(synthesis=3, refine=2, images=64, reconstruct=3, polish=4, game=2, attack_steps=1)
METHODS = {
    "flagship": ("w3.0a4", RECIPE),
    "zaq": ("w3a3", ZAQ(rounds=4, warm_up=3, width=8, latent=8)),
    "laboratory": (
        "w3a3",
        ZAQ(
            rounds=4, warm_up=1, width=8, latent=8, q_steps=1,
            generator="biggan", balance="began", keep="m_global", unroll=1,
        ),
    ),
    "gdfq": ("w3a3", GDFQ(epochs=8, iterations=2, warm_up=0.25, width=8)),
    "deepinversion": ("w3a3", DeepInversion(steps=6, images=16, finetune=6)),
    "zeroq": ("w3a3", ZeroQ(steps=8, patience=2)),
    "dfq": ("w3a3", DFQ(bias_correction="empirical")),
    "photographs": ("w3a3", Flagship(synthesis=4, images=64, reconstruct=0, polish=2, game=2, attack_steps=1)),
}  # fmt: skip


def quantized(name: str, method: Method, bits: str, log: Log, snapshots: Snapshots | None, **more: Any) -> Quantized:
    return quantize_graph(
        traced(name), QConfig.parse(bits), method, card=CARD, effort="fast", log=log, snapshots=snapshots, **more
    )


@pytest.mark.parametrize(("name", "every"), [*((name, 0.0) for name in METHODS), ("gdfq", math.inf)])
def test_a_run_that_was_killed_ends_as_one_that_was_not(name: str, every: float, folder: Path) -> None:
    bits, method = METHODS[name]
    more: dict[str, Any] = {}
    if name == "photographs":
        some = torch.randint(256, (70, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        more["photographs"] = Photographs(some, "here")
    whole = quantized("residual", method, bits, Log(), None, **more)
    rows = whole.journal.log.rows
    for dies_at in (len(rows) // 3, 2 * len(rows) // 3):
        log = Deadly()
        log.dies_at = dies_at
        with pytest.raises(Killed):
            quantized("residual", method, bits, log, Snapshots(folder, {}, every), **more)
    ended = quantized("residual", method, bits, Log(), Snapshots(folder, {}, every), **more)
    assert ended.journal.log.rows == rows
    assert ended.journal.records == whole.journal.records
    for a, b in ((whole, ended),):
        one, other = a.module.state_dict(), b.module.state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
        assert a.state.samples is not None and b.state.samples is not None
        assert torch.equal(a.state.samples, b.state.samples)
    assert any("broken off" in note for note in ended.report["notes"])
