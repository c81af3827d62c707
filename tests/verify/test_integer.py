"""The referee itself, against exact rationals and against float64."""

import copy
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.errors import RunError
from zaq.ir.capture import trace
from zaq.verify.integer import Execution, execute, multiplier, requantize

RATIOS = st.floats(1e-12, 2.0**29)
TERMS = st.integers(-(2**31), 2**31 - 1)


@settings(max_examples=300, deadline=None)
@given(RATIOS)
@example(1 - 2.0**-40)
@example(2.0**-35)
def test_a_multiplier_is_the_ratio_to_31_bits(ratio: float) -> None:
    mantissa, shift = (int(v) for v in multiplier(torch.tensor(ratio, dtype=torch.double)))
    assert 0 <= mantissa <= 2**31 and 1 <= shift <= 62
    assert abs(Fraction(mantissa, 2**shift) - Fraction(ratio)) <= Fraction(ratio) / 2**31 + Fraction(1, 2**62)


def test_a_ratio_without_a_shift_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for a 31-bit multiplier"):
        multiplier(torch.tensor([1.0, 2.0**31]))


def requantized(terms: list[tuple[int, float]], scale: float) -> int:
    given = [(torch.tensor([t]), torch.tensor(s, dtype=torch.double)) for t, s in terms]
    return int(requantize(given, torch.tensor(scale, dtype=torch.double)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**20), 2**20), st.integers(1, 2**8)), min_size=1, max_size=4), st.integers(1, 8)
)
@example([(1, 1)], 1)  # 1/2 -> 0
@example([(3, 1)], 1)  # 3/2 -> 2
@example([(-1, 1)], 1)
@example([(-3, 1)], 1)
@example([(5, 1), (-2, 1)], 1)
def test_rounding_is_half_to_even_where_the_ratio_is_exact(terms: list[tuple[int, int]], shift: int) -> None:
    exact = round(sum(Fraction(t * s, 2**shift) for t, s in terms))
    assert requantized([(t, float(s)) for t, s in terms], 2.0**shift) == exact


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TERMS, st.floats(1e-6, 1.0)), min_size=1, max_size=4), st.floats(1e-6, 1.0))
def test_requantized_is_the_rational_rounded(terms: list[tuple[int, float]], scale: float) -> None:
    """To the 31 bits of the multiplier, less one or two where several terms are added."""
    exact = sum(t * Fraction(s) / Fraction(scale) for t, s in terms)
    largest = max(Fraction(s) / Fraction(scale) for _, s in terms)
    error = sum(abs(t) for t, _ in terms) * largest / 2**28
    assert abs(requantized(terms, scale) - exact) <= Fraction(1, 2) + error


class Case(nn.Module):
    """Two tensors cut from the image and quantized, an operation on them, a quantizer."""

    def __init__(self, operation: Callable[..., Tensor], weight: Tensor | None = None, axis: int = 0) -> None:
        super().__init__()
        self.operation, self.axis = operation, axis
        self.register_buffer("scales", torch.tensor([0.0213, 0.0337, 0.0471]))
        self.register_buffer("zeros", torch.tensor([120, 0, 90], dtype=torch.int32))
        if weight is not None:
            self.register_buffer("weight", weight)
            channels = weight.shape[axis]
            self.register_buffer("weight_scale", torch.linspace(0.008, 0.013, channels))
            self.register_buffer("weight_zero", torch.zeros(channels, dtype=torch.int32))
            self.bias_steps = torch.arange(channels) * 7 - 11

    def quantized(self, x: Tensor, i: int) -> Tensor:
        return torch.ops.zaq.fake_quantize(x, self.scales[i : i + 1], self.zeros[i : i + 1], -1, 0, 255)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.quantized(x[:, :4], 0), self.quantized(x[:, 4:], 1)
        if hasattr(self, "weight"):
            weight = torch.ops.zaq.fake_quantize(self.weight, self.weight_scale, self.weight_zero, self.axis, -128, 127)
            return self.quantized(self.operation(a, weight, self.bias_steps * self.scales[0] * self.weight_scale), 2)
        return self.quantized(self.operation(a, b), 2)


def executed(case: nn.Module) -> tuple[Execution, Tensor, Tensor]:
    """What the referee found, its last quantizer's integers, and the same in float64."""
    images = torch.randn(3, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    done = execute(trace(case, images), images)
    with torch.no_grad():
        exact = copy.deepcopy(case).double()(images.double())
    return done, list(done.integers.values())[-1], (exact / case.scales[2].double()).round().long() + 90


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.5


CASES: dict[str, Case] = {
    "conv": Case(lambda a, w, b: F.conv2d(a, w, b, 2, 1), weight(5, 4, 3, 3)),
    "clamped conv": Case(lambda a, w, b: F.conv2d(a, w, b).clamp(-0.3, 1.1), weight(5, 4, 3, 3)),
    "grouped": Case(lambda a, w, b: F.conv2d(a, w, b, 1, 0, 2, groups=2), weight(6, 2, 2, 2)),
    "depthwise": Case(lambda a, w, b: F.conv2d(a, w, b, groups=4).relu(), weight(4, 1, 3, 3)),
    "transposed": Case(lambda a, w, b: F.conv_transpose2d(a, w, b, 2, 1, 1), weight(4, 3, 3, 3), axis=1),
    "grouped transposed": Case(
        lambda a, w, b: F.conv_transpose2d(a, w, b.repeat(2), 2, groups=2), weight(4, 3, 2, 2), axis=1
    ),
    "linear": Case(lambda a, w, b: F.linear(a[:, :, 0, 0], w, b), weight(3, 4)),
    "add": Case(lambda a, b: a[:, :2] + b),
    "add a tensor to itself": Case(lambda a, b: a + a),
    "clamped add": Case(lambda a, b: F.relu6(a[:, 1:3] + b)),
    "mul": Case(lambda a, b: a[:, 2:] * b),
    "gate": Case(lambda a, b: a[:, :2] * b[:, :, :1, :1]),
    "concat": Case(lambda a, b: torch.cat([a, b, a], 1)),
    "concat of rows": Case(lambda a, b: torch.cat([a[:, :2], b], 2)),
    "max pool": Case(lambda a, b: F.max_pool2d(a, 3, 2, 1)),
    "average pool": Case(lambda a, b: F.avg_pool2d(a, (3, 2), 2, 1)),
    "global pool": Case(lambda a, b: F.adaptive_avg_pool2d(b, 1)),
    "pad": Case(lambda a, b: F.pad(a, (1, 0, 2, 1))),
    "pad channels": Case(lambda a, b: F.pad(b[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))),
    "reflect": Case(lambda a, b: F.pad(a, (1, 1, 1, 1), mode="reflect")),
    "clamp from above": Case(lambda a, b: b.clamp(max=0.7)),
    "upsample": Case(lambda a, b: F.interpolate(a, scale_factor=2)),
    "shuffle": Case(lambda a, b: F.channel_shuffle(a, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_of_float64(name: str) -> None:
    done, integers, exact = executed(CASES[name])
    assert not done.in_float
    assert (integers == exact.clamp(0, 255)).all()
    assert len(integers.unique()) > 2


FLOAT: dict[str, tuple[Case, list[str]]] = {
    "sigmoid": (Case(lambda a, b: a.sigmoid()), ["sigmoid"]),
    "hardswish": (Case(lambda a, b: F.hardswish(a)), ["hardswish"]),
    "padding with a value": (Case(lambda a, b: F.pad(a, (1, 1, 1, 1), value=0.5)), ["pad"]),
    "windows of several sizes": (Case(lambda a, b: F.avg_pool2d(a, 3, 1, 1, count_include_pad=False)), ["avg_pool2d"]),
}


@pytest.mark.parametrize("name", FLOAT)
def test_what_has_no_integer_form_is_named(name: str) -> None:
    case, names = FLOAT[name]
    done, integers, exact = executed(case)
    assert done.in_float == names
    assert (integers == exact.clamp(0, 255)).all()


def test_a_sum_beyond_int32_is_an_error() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(1, 70000))
            self.register_buffer("scale", torch.tensor([1 / 127]))
            self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.ops.zaq.fake_quantize(x, self.scale, self.zero, -1, 0, 255)
            return F.linear(
                x.flatten(1), torch.ops.zaq.fake_quantize(self.weight, self.scale, self.zero, -1, -128, 127)
            )

    images = torch.full((2, 7, 100, 100), 3.0)
    with pytest.raises(RunError, match="linear: a sum of products does not fit the 32 bits"):
        execute(trace(Wide(), images), images)
