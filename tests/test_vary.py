"""`benchmarks/vary.py` puts everything back between variants, and knows a stage's constants."""

import re
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from conftest import benchmark_script
from zoo import saved

from zaq.errors import UserError
from zaq.stages.reconstruct import Reconstruct

SHORT = ["--bits", "w3a3", "-s", "synthesis=2", "-s", "refine=1", "-s", "images=64", "-s", "reconstruct=2"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark_script("vary")


@pytest.mark.parametrize(
    ("stage", "one", "other"),
    [
        ("reconstruct", "lr_scale=0.1", "drop=0 steps=3"),
        ("polish", "travel=6", "steps=10"),
    ],
)
def test_the_same_variant_has_the_same_loss(
    script: ModuleType, stage: str, one: str, other: str, tmp_path: Path
) -> None:
    arguments = [str(saved("residual", tmp_path / "net.pt2")), stage, one, other, one, *SHORT, "-s", "polish=5"]
    result = CliRunner().invoke(script.main, arguments, catch_exceptions=False)
    losses = re.findall(r"\| (?:lr_scale|travel|drop|steps)=.* \| ([\d.]+) \|", result.stdout)
    assert len(losses) == 3 and losses[0] == losses[2] != losses[1]


def test_an_unknown_constant_suggests_the_near_one(script: ModuleType) -> None:
    with pytest.raises(UserError, match="lr_scale"):
        script.parsed(Reconstruct(), "lr_scales=1")
    with pytest.raises(UserError, match="key=number"):
        script.parsed(Reconstruct(), "drop=much")
