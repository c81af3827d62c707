"""A student that answers nothing is no student: it ends in an error, with its file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy import CARD
from zoo import traced

from zaq.api import Quantized, quantize_graph
from zaq.config.bits import QConfig
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.errors import RunError
from zaq.ir.capture import trace
from zaq.methods.rtn import RTN
from zaq.passes.fold import fold
from zaq.report.outputs import outputs_of, require_a_student, sqnr


class Ends(nn.Module):
    """Floats, labels, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer("anchors", torch.rand(7, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.b(F.relu(self.a(x)))
        return y, y.argmax(1), self.anchors  # type: ignore[return-value]


def made(bits: str = "w8a8") -> State:
    """A student on samples, whose ranges are those of noise."""
    teacher, _ = fold(trace(Ends().eval(), torch.zeros(1, 3, 16, 16)))
    state = State(Task(teacher, QConfig.parse(bits), CARD))
    torch.manual_seed(1)
    state.samples = torch.randn(16, 3, 16, 16)
    with state.student.watching("minmax"), torch.no_grad():
        state.student(state.samples)
    return state


def report(state: State, bits: str) -> dict[str, object]:
    weights, activations = int(bits[1]), int(bits[3])
    qconfig = {"weight_bits": weights, "act_bits": activations}
    return {"options": {"qconfig": qconfig}, "agreement": {"outputs": [vars(o) for o in outputs_of(state)]}}


def test_each_output_is_compared_as_what_it_is() -> None:
    state = made()
    scores, labels = outputs_of(state)
    assert scores.sqnr is not None and scores.sqnr > 15 and labels.sqnr is None and labels.equal > 0.9
    assert not scores.stuck and not labels.stuck and labels.number == 1
    require_a_student(report(state, "w8a8"), "model.onnx")


@pytest.mark.parametrize("bits", ["w8a8", "w2a2"])
def test_an_output_that_never_changes_is_an_error_at_any_bits(bits: str) -> None:
    """As of a file whose max pool read a padding of minus infinity: zeros, and equal to its checkpoint's."""
    state = made()
    with torch.no_grad():
        state.student.weight("a.weight").zero_()
    with pytest.raises(RunError, match=r"model\.onnx is written, and is of no use: output 0 never changes, whatever"):
        require_a_student(report(state, bits), "model.onnx")


def test_noise_is_an_error_where_the_bits_are_enough() -> None:
    """Two bits may do no better; a benchmark wants to know how badly they do."""
    state = made()
    with torch.no_grad():
        state.student.weight("b.weight").neg_()
    with pytest.raises(RunError, match=r"output 0 is as far from the float model's as zeros would be \(-"):
        require_a_student(report(state, "w8a8"), "model.onnx")
    require_a_student(report(state, "w2a2"), "model.onnx")


def test_what_hardly_changes_may_be_rounded_to_one_value() -> None:
    state = made()
    assert state.samples is not None
    state.samples = state.samples[:1] + 1e-7 * torch.randn(16, 1, 1, 1)
    assert not any(o.stuck for o in outputs_of(state))


def test_infinity_that_both_mask_with_is_no_noise() -> None:
    p, q = torch.tensor([1.0, -torch.inf]), torch.tensor([1.1, -torch.inf])
    assert sqnr(p, q) == pytest.approx(20, abs=0.1) and sqnr(p, p) == 200
    assert sqnr(p, torch.tensor([1.0, 5.0])) is None and sqnr(torch.ones(2), torch.tensor([1.0, torch.nan])) is None


def test_a_mask_that_is_lost_is_an_error() -> None:
    told = {"options": {"qconfig": {"weight_bits": 2, "act_bits": 2}}}
    lost = {"number": 0, "sqnr": None, "equal": 0.5, "stuck": False, "channels": 3, "dim": 1}
    labels = {"number": 1, "sqnr": None, "equal": 0.5, "stuck": False}
    require_a_student(told | {"agreement": {"outputs": [labels]}}, "model.onnx")
    with pytest.raises(RunError, match="output 0 is infinite where"):
        require_a_student(told | {"agreement": {"outputs": [labels, lost]}}, "model.onnx")


def test_an_error_leaves_the_file(tmp_path: Path) -> None:
    done: Quantized = quantize_graph(traced("residual"), QConfig.parse("w8a8"), RTN(), card=CARD)
    done.report["agreement"]["outputs"][0] |= {"stuck": True}
    with pytest.raises(RunError, match=r"net\.onnx is written, and is of no use"):
        done.export(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").is_file()
