"""A package of somebody else: its method, generator and target are found by name, shown in help, and run by the command
line, without a line of ours changed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo import build, images

from zaq.config.plugins import lookup, names
from zaq.errors import BitsError
from zaq.ir.capture import quiet

DESIGN = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
HEAD = """from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from zaq.config.targets import TARGETS
from zaq.engine.journal import Journal
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.methods import Method
from zaq.stages.calibrate import Calibrate
from zaq.synth.generators import Generator

"""
TAIL = '''

class Grey(Generator):
    """Uniform images, of a brightness that is learned."""

    def __init__(self, card, latent, width, classes=None):
        super().__init__(card, classes)
        self.shade = nn.Parameter(torch.zeros(()))

    def source(self, n):
        return torch.rand(n, *self.low.shape[:1], 16, 16)

    def forward(self, x, labels):
        return self.low + (self.high - self.low) * (x * self.shade.sigmoid())


TOASTER = TARGETS["onnxruntime-arm"]
'''
BATCH = ({0: torch.export.Dim.AUTO},)
OFFERS = """[zaq.methods]
uniform = my_package.mine:UniformNoise
[zaq.generators]
grey = my_package.mine:Grey
[zaq.targets]
toaster = my_package.mine:TOASTER
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves it: the method of docs/design.md in a package that offers it by an entry point; and a
    model.
    """
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", DESIGN, re.DOTALL) if "class UniformNoise" in b]
    site = tmp_path_factory.mktemp("site")
    for folder in ("my_package", "my_package-1.0.dist-info"):
        (site / folder).mkdir()
    (site / "my_package" / "__init__.py").touch()
    (site / "my_package" / "mine.py").write_text(HEAD + code + TAIL)
    (site / "my_package-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n"
    )
    (site / "my_package-1.0.dist-info" / "entry_points.txt").write_text(OFFERS)
    with quiet():
        torch.export.save(torch.export.export(build("residual"), (images(2),), dynamic_shapes=BATCH), site / "net.pt2")
    return site


def zaq_with(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "zaq", *args]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=site, env=os.environ | {"PYTHONPATH": path}, timeout=300
    )


def test_a_method_by_its_name_and_a_target(installed: Path) -> None:
    assert "uniform" in zaq_with(installed, "quantize", "--help").stdout
    done = zaq_with(
        installed, "quantize", "net.pt2", "--bits", "w8a8", "--method", "uniform", "--target", "toaster",
        "-s", "batches=8", "-s", "calibrate.observer=minmax", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = json.loads((installed / "out" / "report.json").read_text())["options"]
    assert options["method"] == {"name": "uniformnoise", "batches": 8, "calibrate.observer": "minmax"}
    assert options["target"] == "toaster"
    assert zaq_with(installed, "verify", "out").returncode == 0


@pytest.mark.slow
def test_a_method_by_its_path_and_a_generator(installed: Path) -> None:
    path = ("net.pt2", "--bits", "w8a8", "--method", "my_package.mine:UniformNoise", "-s", "batches=2", "-o", "path")
    done = zaq_with(installed, "quantize", *path)
    assert done.returncode == 0, done.stderr
    few = ("-s", "warm_up=1", "-s", "rounds=1", "-s", "generator=grey", "-o", "grey")
    done = zaq_with(installed, "quantize", "net.pt2", "--bits", "w4a4", "--method", "zaq", *few)
    assert done.returncode == 0, done.stderr
    assert json.loads((installed / "grey" / "report.json").read_text())["options"]["method"]["generator"] == "grey"


@pytest.mark.slow
def test_what_nobody_offers_is_a_sentence(installed: Path) -> None:
    done = zaq_with(installed, "quantize", "net.pt2", "--method", "unifrom")
    assert done.returncode == 2 and "Did you mean 'uniform'" in done.stderr and "package.module:Class" in done.stderr
    done = zaq_with(installed, "quantize", "net.pt2", "--method", "my_package.mine:Absent")
    assert done.returncode == 2 and "AttributeError" in done.stderr and "Traceback" not in done.stderr
    done = zaq_with(installed, "quantize", "net.pt2", "--method", "my_package.mine:Grey")
    assert done.returncode == 2 and "is no subclass of zaq.methods.Method" in done.stderr


def test_paths_are_followed_only_where_that_is_asked_for() -> None:
    with pytest.raises(BitsError, match="unknown thing 'os:getcwd'"):
        lookup("zaq.things", "thing", "os:getcwd", {"own": 1})
    assert lookup("zaq.things", "thing", "os:getcwd", {"own": 1}, by_path=True) is os.getcwd
    assert lookup("zaq.things", "thing", "own", {"own": 1}) == 1 and names("zaq.things") == []
