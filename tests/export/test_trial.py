"""What cannot become a file is refused before the work, with the operation that is at fault."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.stage import Stage
from zaq.engine.task import Task
from zaq.errors import TraceError
from zaq.export.trial import require_exportable
from zaq.ir.capture import trace
from zaq.methods import Method
from zaq.passes.fold import fold
from zaq.quant.student import Student

CARD = Card(input=(3, 16, 16))


class Net(nn.Module):
    def __init__(self, forward: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class Untouched(Method):
    """Whose work must not begin."""

    def stages(self, task: Task) -> list[Stage]:
        raise AssertionError("the work has begun")


def kernels_of_the_image(net: Net, x: Tensor) -> Tensor:
    """A kernel for each image: a group for each image, whose number a file must know."""
    y = net.a(x)
    kernels = y.mean((2, 3)).repeat_interleave(9, 1).view(-1, 1, 3, 3)
    return F.conv2d(y.reshape(1, -1, 16, 16), kernels, groups=y.shape[0] * 8).view(-1, 8, 14, 14)


def stacked_on_itself(net: Net, x: Tensor) -> Tensor:
    first, second = net.b(net.a(torch.cat([x, x.flip(3)]))).chunk(2)
    return first + second  # type: ignore[no-any-return]


def shrunk(net: Net, x: Tensor) -> Tensor:
    return net.b(F.interpolate(net.a(x), size=(9, 9), mode="bicubic"))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (
            kernels_of_the_image,
            r"no form in ONNX: conv2d_1 \(aten\.conv2d.*\): a size that depends on the batch",
        ),
        (stacked_on_itself, r"cannot be exported: it works for some batch sizes alone, .* Take that part out"),
        (shrunk, r"does not run the model's file: upsample_bicubic2d .*'Cubic' mode only supports"),
    ],
)
def test_it_is_refused_before_the_work(forward: Callable[[Net, Tensor], Tensor], told: str) -> None:
    graph = trace(Net(forward).eval(), torch.zeros(1, 3, 16, 16))
    with pytest.raises(TraceError, match=told) as caught:
        quantize_graph(graph, QConfig.parse("w4a4"), Untouched(), card=CARD, trial=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of a sum pool once was, whose divisor torch's exporter drops: here of another network's weights."""
    teacher, _ = fold(trace(Net(lambda s, x: s.b(s.a(x))).eval(), torch.zeros(1, 3, 16, 16)))
    student = Student(teacher, QConfig.parse("w8a8"), CARD, search=False)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    require_exportable(student, teacher, images, QConfig.parse("w8a8").runtime)
    from zaq.export import trial

    exported = trial.to_onnx

    def another(*args: object, **choices: object) -> bytes:
        student.weight("b.weight").neg_()
        return exported(*args, **choices)  # type: ignore[arg-type]

    monkeypatch.setattr(trial, "to_onnx", another)
    with pytest.raises(TraceError, match="output 0 of the model's file is not what the model computes"):
        require_exportable(student, teacher, images, QConfig.parse("w8a8").runtime)


def test_random_numbers_go_on_as_if_nothing_had_been_tried() -> None:
    graph = trace(Net(lambda s, x: s.b(s.a(x))).eval(), torch.zeros(1, 3, 16, 16))
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    with pytest.raises(AssertionError, match="the work has begun"):
        quantize_graph(graph, QConfig.parse("w8a8"), Untouched(), card=CARD, trial=True)
    assert torch.equal(torch.rand(4), wanted)


def test_what_sees_nothing_in_noise_is_no_other_file() -> None:
    """Behind a sigmoid far below zero all is rounding: a detector of text was refused for it once."""
    net = Net(lambda s, x: (10 * s.b(s.a(x)).abs() + 12).neg().sigmoid()).eval()
    teacher, _ = fold(trace(net, torch.zeros(1, 3, 16, 16)))
    student = Student(teacher, QConfig.parse("w2a2"), CARD, search=False)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    require_exportable(student, teacher, images, QConfig.parse("w2a2").runtime)
