"""A file that is not its checkpoint ends in exit code 1, with the layer at which they part first."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import zaq_here
from onnx import numpy_helper
from zoo import build, images

from zaq.ir.capture import quiet
from zaq.verify.parity import compare


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with quiet():
        batch = ({0: torch.export.Dim.AUTO},)
        program = torch.export.export(build("residual"), (images(2),), dynamic_shapes=batch)
        torch.export.save(program, folder / "net.pt2")
    done = zaq_here("quantize", folder / "net.pt2", "--method", "rtn", "-o", folder / "run")
    assert done.exit_code == 0, done.output
    done = zaq_here("export", folder / "run", "--format", "packed")
    assert done.exit_code == 0, done.output
    return folder / "run"


def changed(run: Path, folder: Path, name: str, factor: float) -> Path:
    """A copy of a run in whose file the scale of one weight is another."""
    shutil.copytree(run, folder / "run")
    path = folder / "run" / name
    model = onnx.load(path)
    scales = [n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    weight = next(t for t in model.graph.initializer if t.name in scales and t.dims and t.dims[0] > 1)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(model, path)
    return folder / "run"


@pytest.mark.parametrize("name", ["model.onnx", "model.packed.onnx"])
def test_a_file_of_other_numbers(name: str, run: Path, tmp_path: Path) -> None:
    assert zaq_here("verify", run).exit_code == 0
    done = zaq_here("verify", changed(run, tmp_path, name, 3.0))
    assert done.exit_code == 1, done.output
    assert f"{name}: is not its checkpoint" in done.stderr and "dB" in done.stderr
    assert "they part first at stem_0_weight" in done.stderr or "they part first at relu" in done.stderr, done.stderr


def test_a_file_of_what_is_no_number(run: Path, tmp_path: Path) -> None:
    folder = changed(run, tmp_path, "model.onnx", 1.0)
    model = onnx.load(folder / "model.onnx")
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if o == name else o for o in node.output]
    model.graph.node.append(onnx.helper.make_node("Sub", ["before", "nan"], [name]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32([np.nan]), "nan"))
    onnx.save(model, folder / "model.onnx")
    done = zaq_here("verify", folder)
    assert done.exit_code == 1 and "hold NaN or infinities" in done.stderr, done.output
    assert "top-1 agrees on 0.00 %" in done.stdout and "100.00 % by more" in done.stdout
    done = zaq_here("verify", folder, "--json")
    assert "NaN" not in done.stdout and json.loads(done.stdout)["sqnr"] is None


def test_a_form_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    options = json.loads((run / "options.json").read_text()) | {"seed": 1}
    (tmp_path / "run" / "options.json").write_text(json.dumps(options))
    done = zaq_here("export", tmp_path / "run", "--overwrite")
    assert done.exit_code == 0, done.output
    done = zaq_here("verify", tmp_path / "run")
    assert done.exit_code == 2 and "model.packed.onnx: was not made from the options.json" in done.stderr


def test_what_is_asked_of_a_file_in_ci(run: Path) -> None:
    assert zaq_here("verify", run, "--min-agreement", 90).exit_code == 0
    done = zaq_here("verify", run, "--min-agreement", 0.9)
    assert done.exit_code == 2 and "is 90 meant?" in done.stderr
    assert zaq_here("verify", run, "--min-agreement", 101).exit_code == 2


def test_fewer_classes_alike_than_asked(run: Path, tmp_path: Path) -> None:
    """A file that differs a little passes, unless more is asked of it."""
    folder = changed(run, tmp_path, "model.onnx", 1.02)
    student, samples = torch.export.load(folder / "quantized.pt2").module(check_guards=False), images(256)
    agreement = compare(folder / "model.onnx", student, samples).agreement
    done = zaq_here("verify", folder, "--min-agreement", 100)
    assert (done.exit_code == 1) == ("less than the 100 asked" in done.stderr), (agreement, done.output)
    assert zaq_here("verify", folder).exit_code == 0


def test_decibels_are_those_of_the_output_that_differs_most(run: Path) -> None:
    program = torch.export.load(run / "quantized.pt2").module(check_guards=False)

    class Off(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = 1.1 * program(x)
            return out

    assert compare(run / "model.onnx", program, images(64)).sqnr == pytest.approx(200, abs=80)
    found = compare(run / "model.onnx", Off(), images(64)).sqnr
    assert found == pytest.approx(20 * np.log10(11), abs=0.1)
