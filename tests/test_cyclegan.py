"""The benchmark that trains CycleGAN: its losses by hand, its pool, and that it runs from images to a table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import benchmark_script
from torch import Tensor

from zaq.sources import load

cyclegan = benchmark_script("cyclegan")


def numbered(first: int, count: int) -> Tensor:
    """Images of one pixel that tells which they are."""
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1)


def test_the_pool_returns_what_is_new_or_old_and_keeps_as_many_as_it_may() -> None:
    """Until it is full, the new ones; then by even chance the new one, which is not kept, or an old one, which the new
    one takes the place of."""
    torch.manual_seed(0)
    pool = cyclegan.Pool(50)
    assert torch.equal(pool.exchange(numbered(0, 50)), numbered(0, 50))
    given, replaced = 0, 0
    for first in range(50, 1050, 10):
        before, new = {int(x) for x in pool.images}, numbered(first, 10)
        for image in new:
            (found,) = pool.exchange(image[None])
            after = {int(x) for x in pool.images}
            assert len(after) == 50, "none twice"
            if torch.equal(found, image):
                given += 1
                assert after == before
            else:
                replaced += 1
                assert int(found) in before and after == before - {int(found)} | {int(image)}
            before = after
    assert given + replaced == 1000 and 430 < given < 570


def test_losses_by_hand() -> None:
    """LSGAN: (D - 1)^2 for who fools; ((D(y) - 1)^2 + D(G(x))^2) / 2 for who is not to be fooled."""
    of_real, of_drawn = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 2.0])
    assert float(cyclegan.fooled(of_drawn)) == pytest.approx((1 + 1) / 2)
    assert float(cyclegan.told_apart(of_real, of_drawn)) == pytest.approx((0.25 / 2 + 4 / 2) / 2)


def test_a_generator_step_goes_down_the_papers_loss_and_rates_fall_on_a_line() -> None:
    torch.manual_seed(0)
    gan, (x, y) = cyclegan.CycleGAN(4), torch.rand(2, 2, 3, 16, 16)
    with torch.no_grad():
        to_y, to_x = gan.there(x), gan.back(y)
        cycle = (gan.back(to_y) - x).abs().mean() + (gan.there(to_x) - y).abs().mean()
        identity = (gan.there(y) - y).abs().mean() + (gan.back(x) - x).abs().mean()
        fooling = (gan.of_y(to_y) - 1).square().mean() + (gan.of_x(to_x) - 1).square().mean()
    asked: list[Tensor] = []
    step = gan._go
    gan._go = lambda optimizer, loss: (asked.append(loss.detach()), step(optimizer, loss))
    before = [p.detach().clone() for p in gan.of_y.parameters()]
    found, rates = gan.step(x, y), []
    assert float(asked[0]) == pytest.approx(float(fooling + 10 * cycle + 5 * identity), rel=1e-5)
    assert found["cycle"] == pytest.approx(float(cycle), rel=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(before, gan.of_y.parameters(), strict=True))
    for _ in range(3):
        rates.append(gan.up.param_groups[0]["lr"] / cyclegan.RATE)
        gan.step(x, y)
    assert rates == pytest.approx([1.0, 1.0, 0.5])


def test_a_verdict_is_of_a_patch_of_16_pixels() -> None:
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    verdicts = torch.nn.Sequential(*(m for m in cyclegan.patches() if not isinstance(m, torch.nn.InstanceNorm2d)))(x)
    verdicts[0, 0, verdicts.shape[2] // 2, verdicts.shape[3] // 2].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()  # type: ignore[union-attr]
    assert int(rows.max() - rows.min()) + 1 == 16


@pytest.mark.slow
def test_from_images_to_a_table(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for part, count in (("data_batch_1", 40), *((f"data_batch_{i}", 20) for i in range(2, 6)), ("test_batch", 40)):
        raw = numbers.integers(0, 256, (count, 3073)).astype(np.uint8)
        raw[:, 0] = np.where(np.arange(count) % 2, *cyclegan.KINDS.values())
        raw.tofile(tmp_path / f"{part}.bin")
    few = ("--steps", "2", "--batch", "2", "--images", "6", "--effort", "fast", "--results", str(tmp_path / "results"))
    words = ["--data", f"cifar10:{tmp_path}", *few, "-o", str(tmp_path / "net.pt2")]
    done = CliRunner().invoke(cyclegan.main, words)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [row["bits"] for row in said["rows"]] == ["w8a8", "w6a6", "w4a8"]
    assert said["rows"][0]["psnr"] > said["rows"][2]["psnr"] and said["test_images"] == 6
    assert (tmp_path / "results" / "sheet.png").stat().st_size > 1000
    assert load(str(tmp_path / "net.pt2")).card == cyclegan.CARD
