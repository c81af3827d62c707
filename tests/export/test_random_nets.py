"""Random nets at random bits, exported in every form: the file, the student and the integer referee are the same.

ZAQ_RANDOM_NETS says how many (300 take half an hour). Seeds are fixed; `pytest -s` prints a line for each net.

Referee, file and student round the same number, the referee exactly, the other two in float32. They may part only
where that number lies within float32's error of a tie between two steps, and then by one step. So, in the first layer
that parts (which reads what all agree on): no element is off by more than one step, and hardly any is off at all.
What lies behind such a layer carries the difference on and is not looked at.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from numpy.typing import NDArray
from random_nets import Shape, nets, qconfigs
from torch import nn

import zaq
from zaq.config import QConfig
from zaq.errors import BitsError
from zaq.export.kernels import kernels
from zaq.export.layers import Layer, Shares, compare_layers
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.graph import from_exported
from zaq.methods.rtn import RTN

NETS = int(os.environ.get("ZAQ_RANDOM_NETS", "12"))
AT_ONCE = 6  # from the eleventh on hypothesis varies what it made before
SAMPLES = 8
FEW = 0.01  # share of a layer's elements that may lie on a tie ...
FEWEST = 2  # ... of which small layers have too few
NEAR = 1e-5  # of the largest output: float32 arithmetic in another order


@pytest.mark.parametrize("number", range(math.ceil(NETS / AT_ONCE)))
def test_random_nets(number: int, tmp_path: Path) -> None:
    @seed(number)
    @settings(
        max_examples=AT_ONCE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking would take an hour; a failure prints its net
    )
    @given(nets(), qconfigs())
    def check(made: tuple[nn.Module, Shape], qconfig: QConfig) -> None:
        print("\n" + compared(*made, qconfig, tmp_path))

    check()


def compared(net: nn.Module, shape: Shape, qconfig: QConfig, folder: Path) -> str:
    """Check one net; what was found, as a line."""
    samples = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(1))
    quantized = zaq.quantize(net, samples[:1], qconfig, RTN(batches=1))
    program = program_of(quantized.module)
    outputs = files(program, qconfig, folder, samples)
    in_float = kernels(folder / "qdq.onnx").in_float
    for form in {"packed", "qoperator"} & set(outputs):
        for ours, theirs in zip(outputs["qdq"], outputs[form], strict=True):
            # Float kernels may be others, which add in another order; an integer has but one value.
            assert in_float or qconfig.placement != "integer" or (ours == theirs).all(), f"{form} is not qdq"
            far = np.abs(ours - theirs).reshape(SAMPLES, -1).max(1) > NEAR * np.abs(ours).max()
            assert far.sum() <= 1, f"{form} is not qdq: {far.sum()} samples of {SAMPLES}"
    assert [a.shape for a in outputs["float"]] == [a.shape for a in outputs["qdq"]]
    layers, referee = compare_layers(folder / "qdq.onnx", from_exported(program), samples)
    sizes = [referee.integers[layer.node].numel() for layer in layers]
    parted = [first_parting([getattr(layer, who) for layer in layers], layers, sizes) for who in ("file", "checkpoint")]
    same = [quantized.module(samples)] if len(outputs["qdq"]) == 1 else list(quantized.module(samples))
    for who, values, part in (("file", outputs["qdq"], parted[0]), ("student", [t.numpy() for t in same], parted[1])):
        for found, exact in zip(values, referee.outputs, strict=True):
            difference = np.abs(found - exact.numpy()).max()
            assert part or difference <= NEAR * max(float(exact.abs().max()), 1e-3), f"{who}: {difference} off behind equal layers"
    grids = f"{qconfig} first-last {qconfig.first_last} {qconfig.placement} {qconfig.weights} {qconfig.activations} {qconfig.target}"
    reasons = ", ".join(sorted({f"{n.op}: {n.why.split(' ')[0] if 'nothing' in n.why else n.why}" for n in in_float}))
    line = f"NET {grids}: {len(layers)} layers, file {parted[0] or 'equal'}, student {parted[1] or 'equal'}"
    return f"{line}; referee's floats: {referee.in_float}; float kernels: {reasons or 'none'}"


def files(program: Any, qconfig: QConfig, folder: Path, samples: torch.Tensor) -> dict[str, list[NDArray[np.float32]]]:
    """The outputs of every form; `packed` only where there is something to pack."""
    translated, outputs = translate(program), {}
    for form in ("qdq", "packed", "qoperator", "float"):
        path = folder / f"{form}.onnx"
        try:
            path.write_bytes(in_form(translated, {}, form, target=qconfig.runtime))
        except BitsError as error:
            assert form == "packed" and "4 bits and fewer" in str(error)
            continue
        onnx.checker.check_model(onnx.load(path), full_check=form != "qoperator")  # which has operators that ONNX does not know
        outputs[form] = run_session(session(path), samples)
        assert all(np.isfinite(a).all() for a in outputs[form])
    return outputs


def first_parting(shares: list[Shares], layers: list[Layer], sizes: list[int]) -> str:
    """The first layer that parts from the referee, after a check that it does so by a few ties; empty if none does."""
    for layer, share, size in zip(layers, shares, sizes, strict=True):
        if share.equal < 1:
            assert share.worse == 0 and (1 - share.equal) * size <= max(FEWEST, FEW * size), f"of {size}: {layer.sentence()}"
            return f"parts in {layer.name} ({100 * share.one_step:.3f} % of {size})"
    return ""
