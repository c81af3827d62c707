"""Fine-tuning: it learns from the images it is handed, says so everywhere, and stores none of them."""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import torch
from conftest import zaq_here
from safetensors.torch import load_file
from torch import Tensor
from torch.fx import GraphModule
from zoo import CARD, SHAPE, build, images, traced

from zaq.api import Quantized, quantize_graph
from zaq.cli.options import method_of
from zaq.cli.quantize import _data_read
from zaq.config.bits import QConfig
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import BitsError, DataError, UserError
from zaq.ir.capture import quiet
from zaq.methods import ft
from zaq.methods.ft import FineTune
from zaq.passes.fold import fold
from zaq.stages.training import FASTEST, distillation

Batches = Iterator[tuple[Tensor, Tensor]]


@functools.cache
def graph(name: str) -> GraphModule:
    return traced(name)


def real(classes: int = 5, seed: int = 0) -> Batches:
    """Endless batches as `zaq.data.shuffled` makes them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield (
            torch.randn(8, *SHAPE, generator=generator).clamp(-2, 2),
            torch.randint(classes, (8,), generator=generator),
        )


def quantize(
    method: FineTune, batches: Batches | None = None, name: str = "residual", bits: str = "w4a4", seed: int = 0
) -> Quantized:
    return quantize_graph(graph(name), QConfig.parse(bits), method, card=CARD, seed=seed, real=batches or real())


def test_it_brings_the_student_closer() -> None:
    quantized = quantize(FineTune(steps=50, labels=False, lr_student=0.01), bits="w3a3")
    stage = quantized.report["stages"][-1]
    assert [s["name"] for s in quantized.report["stages"]] == ["calibrate", "ft"]
    assert stage["kept"] and stage["loss_after"] < 0.8 * stage["loss_before"]


def test_a_seed_repeats_bit_for_bit() -> None:
    a, b, c = (quantize(FineTune(steps=5), seed=s) for s in (3, 3, 4))
    assert all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())
    assert not torch.equal(a.state.samples, c.state.samples)  # type: ignore[arg-type]


def test_the_loss_is_cross_entropy_and_distillation() -> None:
    batches, job = (
        list(zip(range(8), real(), strict=False)),
        State(Task(fold(graph("residual"))[0], QConfig.parse("w8a8"), CARD)),
    )
    journal = Journal()
    run_stages(
        FineTune(alpha=0.5, temperature=3.0, steps=1, lr_student=1e-9, lr_bias=0.0).plan(job.task, real()), job, journal
    )
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(job.student.module(x), y)
            + 0.5 * distillation(job.student.module(x), job.task.teacher(x), 3.0)
            for _, (x, y) in batches
        ]
    assert journal.records[-1].loss_before == pytest.approx(float(torch.stack(losses).mean()))


@pytest.mark.parametrize(
    "options", [{"labels": False}, {"learn_scales": False}, {"alpha": 0.0}, {"lr_student": 1e-3}, {"lr_bias": 1e-2}]
)
def test_its_constants_are_options(options: dict[str, object]) -> None:
    quantized = quantize(FineTune(steps=5, **options))  # type: ignore[arg-type]
    assert quantized.report["options"]["method"] | options == quantized.report["options"]["method"]
    assert "reads_data" not in quantized.report["options"]["method"]
    assert quantized.journal.log.rows[-1]["held_out"] != plain_held_out()


@functools.cache
def plain_held_out() -> float:
    return float(quantize(FineTune(steps=5)).journal.log.rows[-1]["held_out"])


def test_the_step_follows_from_the_way() -> None:
    """Half of `travel` per half a step: the cosine's factors sum to half the steps."""
    assert FineTune(travel=0.2).rate(6000) == pytest.approx(0.2 / 3000, rel=1e-3)
    assert FineTune().rate(10) == FASTEST and FineTune().rate(0) == FASTEST and FineTune(lr_student=0.5).rate(10) == 0.5


def test_no_real_image_is_kept_and_a_note_says_so() -> None:
    seen = []

    def watched() -> Batches:
        for batch in real():
            seen.append(batch[0])
            yield batch

    quantized = quantize(FineTune(steps=5), watched())
    assert len(seen) == ft.HELD_OUT_BATCHES + ft.CALIBRATION_BATCHES + 5
    samples = quantized.state.samples
    assert samples is not None and samples.shape[1:] == SHAPE
    low, high = CARD.bounds()
    assert (samples >= low).all() and (samples <= high).all()
    assert torch.cdist(samples.flatten(1), torch.cat(seen).flatten(1)).min() > 5.0
    assert any("trained on real images" in n and "noise" in n for n in quantized.report["notes"])


def test_ctrl_c_keeps_the_last_whole_round() -> None:
    def interrupted() -> Batches:
        for i, batch in enumerate(real()):
            if i == ft.HELD_OUT_BATCHES + ft.CALIBRATION_BATCHES + 12:
                raise KeyboardInterrupt
            yield batch

    quantized = quantize(FineTune(steps=100), interrupted())
    assert quantized.report["interrupted"] and quantized.report["stages"][-1]["note"].startswith(
        "interrupted after step 10 of 100"
    )
    assert math.isfinite(quantized.report["stages"][-1]["loss_after"])


def test_what_it_needs_is_a_sentence() -> None:
    with pytest.raises(DataError, match="was handed none; name them with --data"):
        quantize_graph(graph("residual"), QConfig.parse("w8a8"), FineTune(), card=CARD)
    with pytest.raises(BitsError, match="is no classifier; --method zaq"):
        quantize(FineTune(), name="transposed")
    with pytest.raises(DataError, match=r"a label of the images is \d, and the model knows the classes 0..4"):
        quantize(FineTune(), real(classes=9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and its data in an .npz file."""
    folder = tmp_path_factory.mktemp("ft")
    rng = np.random.default_rng(0)
    with quiet():
        program = torch.export.export(build("residual"), (images(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.export.save(program, folder / "net.pt2")
    pixels, labels = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), rng.integers(0, 5, 40)
    np.savez(folder / "data.npz", x_train=pixels, y_train=labels, x_test=pixels[:2], y_test=labels[:2])
    return folder


def test_a_run_says_in_red_that_real_images_were_read(folder: Path, tmp_path: Path) -> None:
    data = f"npz:{folder}/data.npz"
    flags = (
        "--bits",
        "w8a8",
        "--method",
        "ft",
        "--data",
        data,
        "-s",
        "steps=5",
        "--normalize",
        "cifar10",
        "-o",
        tmp_path / "out",
    )
    done = zaq_here("quantize", folder / "net.pt2", *flags)
    assert done.exit_code == 0, done.output
    assert (
        f"REAL IMAGES READ: {data}" in done.stdout
        and "no data read" not in done.stdout
        and "trained on real images" in done.stdout
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["options"]["data"] == data and _data_read(report) == click.style(
        f"REAL IMAGES READ: {data}", fg="red"
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        f'<p class="real"><b>Real images were read: {data}.' in page
        and ".real { color: var(--wrong); }" in page
        and "No real image" not in page
    )
    properties = {p.key: p.value for p in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert data in " ".join(properties.values())
    stored = load_file(tmp_path / "out" / "samples.safetensors")["pixels"].float()
    assert float(stored.mean()) == pytest.approx(127.5, abs=1) and float(stored.std()) == pytest.approx(
        255 / 12**0.5, abs=1
    )  # noise


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method", "zaq", "--data", "npz:x"], "--method zaq reads no data; only ft does"),
        (["--method", "ft"], "--method ft reads real images: name them with --data"),
    ],
)
def test_data_and_method_must_go_together(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = zaq_here("quantize", *args)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_that_it_reads_data_is_no_setting() -> None:
    with pytest.raises(UserError, match="unknown setting of ft 'reads_data'"):
        method_of("ft", ("reads_data=false",))
