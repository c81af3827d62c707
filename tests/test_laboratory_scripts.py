"""The laboratory's benchmarks count what they say, and run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import benchmark_script
from zoo import CARD, saved

from zaq.config.bounds import json_text

ring, balance = benchmark_script("ring"), benchmark_script("balance")


def test_modes_are_counted() -> None:
    torch.manual_seed(0)
    found, near = ring.modes(ring.samples(800))
    assert found == 8 and near > 0.98
    some = ring.centres()[torch.tensor([0, 0, 3])].repeat(10, 1)
    assert ring.modes(torch.cat([some, torch.zeros(10, 2)])) == (2, 0.75)


def test_the_ring_runs() -> None:
    done = CliRunner().invoke(ring.ring, ["--steps", "2", "--unroll", "0", "--unroll", "2"])
    assert done.exit_code == 0, done.output
    assert [line.split("|")[1].strip() for line in done.output.splitlines()] == ["K", "---", "0", "2"]


def test_rank_correlation() -> None:
    """By hand: 1 - 6 sum d^2 / (n (n^2 - 1)) where no two are equal; half ranks where two are."""
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 30.0, 20.0, 40.0])
    assert balance.spearman(a, b) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert balance.spearman(a, -a) == pytest.approx(-1)
    assert balance.spearman(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 5.0])) == pytest.approx(1)


@pytest.mark.slow
def test_states_of_a_game_are_ranked(tmp_path: Path) -> None:
    saved("residual", tmp_path / "net.pt2")
    (tmp_path / "net.json").write_text(json_text(CARD.to_dict()))
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8), rng.integers(0, 5, 20)
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels)
    few = ("--rounds", "3", "--warm-up", "1", "--every", "1", "--bits", "w3a3")
    done = CliRunner().invoke(
        balance.balance, [str(tmp_path / "net.pt2"), "--data", f"npz:{tmp_path / 'data.npz'}", *few]
    )
    assert done.exit_code == 0, done.output
    assert done.output.count("M_global") == 4 and "rho of -M_global and top-1" in done.output
