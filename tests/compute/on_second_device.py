"""Every method on a second device: there as on the CPU, with nothing of it mixed, and nothing left behind.

The device is that of `../shared/tools`: memory of the CPU under another label, which refuses CPU tensors as a GPU does.
What only a card shows it cannot see. Doubles on it are refused as well, since Apple's GPUs have none. A process has it
before it takes its first gradient or never: `test_second_device.py` runs this file in processes of their own.
"""

import functools
import importlib.util
import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, zaq_here
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from toy import CARD, gratings, trained

from zaq.api import Quantized, quantize, quantize_graph
from zaq.compute.devices import CPU, device_named, devices
from zaq.config.bits import QConfig
from zaq.engine import store
from zaq.engine.journal import Journal
from zaq.engine.snapshot import Snapshots
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.engine.work import Work
from zaq.errors import UserError
from zaq.ir.capture import trace
from zaq.ir.move import device_of, onto
from zaq.methods import METHODS, Method
from zaq.methods.ft import FineTune

EXAMPLE = torch.zeros(1, 3, 16, 16)
FEW: dict[str, dict[str, Any]] = {  # steps of each method, enough to pass through every stage of it; and constants
    "rtn": {},
    "dfq": {},
    "aciq": {},
    "zeroq": {"steps": 2},
    "zaq": {"warm_up": 2, "rounds": 1, "width": 8},
    "zaq, laboratory": {
        "warm_up": 2, "rounds": 2, "width": 8, "q_steps": 1,
        "generator": "biggan", "truncation": 1.0, "balance": "began",
    },  # not unrolled: a convolution's second gradient makes an empty tensor, which the toy does not survive
    "gdfq": {"epochs": 110, "iterations": 1, "warm_up": 0.02, "width": 8, "batch": 16},
    "deepinversion": {"steps": 2, "images": 16, "finetune": 2},
    "flagship": {"synthesis": 2, "refine": 1, "images": 64, "reconstruct": 1, "polish": 2, "game": 1, "cycle": 1.0},
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def toy(shared: Path) -> torch.device:
    """The second device, for the life of this process: `auto` does not choose it."""
    spec = importlib.util.spec_from_file_location("second_device", shared / "tools" / "second_device.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device: torch.device = module.activate()
    return device


class NoDoubles(TorchDispatchMode):
    """Refuses doubles on any device but the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(found):
            if isinstance(value, Tensor) and value.dtype == torch.double:
                assert value.device == CPU, f"{func} makes doubles on {value.device}"
        return found


@functools.cache
def on_cpu(name: str) -> Quantized:
    return made(name, CPU)


def made(name: str, device: torch.device) -> Quantized:
    graph, method, guard = trace(trained(), EXAMPLE), METHODS[name.split(",")[0]](**FEW[name]), nullcontext()
    with guard if device == CPU else NoDoubles():
        return quantize_graph(graph, QConfig.parse("w4a4"), method, card=CARD, effort="fast", work=Work(device))


def require_same(a: Quantized, b: Quantized) -> None:
    """The same losses and the same student, to what floats differ by."""
    for ours, theirs in zip(a.report["stages"], b.report["stages"], strict=True):
        for loss in ("loss_before", "loss_after"):
            assert ours[loss] == (theirs[loss] and pytest.approx(theirs[loss], rel=0.02)), ours["name"]
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    assert all(value.device == CPU for value in theirs.values())
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("name", FEW)
def test_a_method_does_the_same(name: str, toy: torch.device) -> None:
    here, there = on_cpu(name), made(name, toy)
    require_same(here, there)
    assert there.report["options"]["device"] == "toy:0"
    assert there.state.samples is not None and there.state.samples.device == CPU
    if name in ("rtn", "dfq", "aciq", "zeroq"):
        assert all(torch.equal(v, there.module.state_dict()[k]) for k, v in here.module.state_dict().items())


@pytest.mark.parametrize("name", ["dfq", "flagship"])
def test_images_too_many_for_the_device_lie_beside_it(
    name: str, toy: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SMALL", 0)
    require_same(on_cpu(name), made(name, toy))


def test_bits_are_chosen_alike(toy: torch.device) -> None:
    config = QConfig.parse("mixed", target_size=6000)
    graph, method = trace(trained(), EXAMPLE), METHODS["zeroq"](steps=2)
    found = [
        quantize_graph(graph, config, method, card=CARD, effort="fast", work=Work(device)) for device in (CPU, toy)
    ]
    assert found[0].task.qconfig.layer_bits == found[1].task.qconfig.layer_bits


def test_real_images_are_learned_from(toy: torch.device) -> None:
    def batches() -> Any:
        seed = 0
        while True:
            seed += 1
            yield gratings(16, seed)

    graph, config = trace(trained(), EXAMPLE), QConfig.parse("w4a4")
    here, there = (
        quantize_graph(graph, config, FineTune(steps=2), card=CARD, real=batches(), work=Work(device))
        for device in (CPU, toy)
    )
    require_same(here, there)


def test_a_model_comes_back_where_it_was(toy: torch.device, tmp_path: Path) -> None:
    model = onto(trained(), toy)
    quantized = quantize(model, EXAMPLE, "w8a8", METHODS["rtn"](), card=CARD, effort="fast")
    assert quantized.report["options"]["device"] == "toy:0"
    assert device_of(quantized.module) == device_of(model) == toy
    images, _ = gratings(4, 0)
    assert quantized.module(images.to(toy)).device == toy
    quantized.export(tmp_path / "model.onnx")
    plain = quantize(trained(), EXAMPLE, "w8a8", METHODS["rtn"](), card=CARD, effort="fast", device="cpu")
    plain.export(tmp_path / "plain.onnx")
    there, here = ((tmp_path / name).read_bytes() for name in ("model.onnx", "plain.onnx"))
    assert there.replace(b"toy:0", b"cpu") == here.replace(b"toy:0", b"cpu")


def test_a_run_goes_on_on_another_device(toy: torch.device, tmp_path: Path) -> None:
    """Broken off on the device in the middle of its game, it goes on on the CPU to where it would have come."""

    class Broken(Exception):
        pass

    class Breaks(Snapshots):
        def flush(self) -> None:
            super().flush()
            if any(p for n, p in self.there() if n >= 3):
                raise Broken

    def run(kind: type[Snapshots], folder: Path, device: torch.device) -> Quantized:
        graph, snapshots = trace(trained(), EXAMPLE), kind(folder, {}, every=0.0)
        method = METHODS["flagship"](**FEW["flagship"] | {"polish": 6})
        return quantize_graph(
            graph, QConfig.parse("w4a4"), method, card=CARD, effort="fast", snapshots=snapshots, work=Work(device)
        )

    with pytest.raises(Broken):
        run(Breaks, tmp_path / "a", toy)
    gone_on = run(Snapshots, tmp_path / "a", CPU)
    assert any("went on from a snapshot" in note for note in gone_on.journal.notes)
    require_same(run(Snapshots, tmp_path / "b", CPU), gone_on)


@dataclass(frozen=True, kw_only=True)
class Greedy(Stage):
    """A stage that the device has no memory for while a batch is large."""

    name: str = "greedy"
    most: int = 32

    def once(self, state: State, journal: Journal) -> None:
        if state.task.batch > self.most:
            raise torch.OutOfMemoryError("toy out of memory. Tried to allocate 20 GiB.")


@dataclass(frozen=True)
class Hungry(Method):
    most: int = 32
    name = "hungry"

    def stages(self, task: Task) -> list[Stage]:
        return [*METHODS["rtn"]().stages(task), Greedy(most=self.most)]


def test_half_a_batch_is_tried_once(toy: torch.device) -> None:
    graph, config = trace(trained(), EXAMPLE), QConfig.parse("w8a8")
    done = quantize_graph(graph, config, Hungry(), card=CARD, effort="fast", work=Work(toy))
    assert "toy:0 has no memory for batches of 64: it began anew with 32" in done.report["notes"]
    assert [s["name"] for s in done.report["stages"]] == ["calibrate", "greedy"]
    with pytest.raises(torch.OutOfMemoryError):
        quantize_graph(graph, config, Hungry(most=16), card=CARD, effort="fast", work=Work(toy))


def test_the_command_line(toy: torch.device, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = zaq_here("quantize", model, *QUICK, "--device", "toy", "-o", run)
    assert done.exit_code == 0, done.output
    assert " on toy:0, " in done.output
    assert json.loads((run / "options.json").read_text())["device"] == "toy:0"
    plain = zaq_here("verify", run, "--device", "cpu")
    assert zaq_here("verify", run, "--device", "toy").output == plain.output
    assert plain.exit_code == 0, plain.output


def test_a_device_that_is_not_there_is_named(toy: torch.device) -> None:
    assert devices() == ["cpu", "toy:0"] and device_named("toy") == toy
    assert device_named("auto") == CPU  # only what zaq knows is chosen without being asked for
    for name, said in (
        ("toy:1", "--device toy:1: is not there; there is: cpu, toy:0."),
        ("tpy", "unknown device 'tpy'. Did you mean 'toy:0'?"),
        ("cuda:9", "--device cuda:9: is not there"),
    ):
        with pytest.raises(UserError) as error:
            device_named(name)
        assert said in str(error.value)
