"""The quantized graph in integers alone: the referee that the ONNX file and the fake-quantized model are held against.

Between two quantizers nothing is a float: convolutions and linear layers add products of integers to an int32 bias in
an int32 accumulator; a quantizer behind them multiplies by S_in S_w / S_out, which is stored as a 31-bit integer and a
shift to the right (Jacob et al. 2018, section 2.2), rounds once, half to even, adds the zero point and saturates.
Additions, multiplications, concatenations and average pooling work the same way. What has no such form (softmax, a
batch norm that folds into nothing) is computed in float, and named.

Sums are exact: they are carried in float64 by torch's own kernels, which holds every integer below 2^53, and are
checked to fit int32. This is a reference, not a fast path.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from zaq.errors import RunError
from zaq.ir.nodes import moves
from zaq.ir.ops import CLAMPS, MATMULS, MAX_POOLS, MOVES, PADS, TRANSPOSED, WEIGHTED

__all__ = ["Execution", "execute", "multiplier", "requantize"]

aten = torch.ops.aten
LINEAR_MOVES = MOVES - MAX_POOLS
MANTISSA = 31  # bits of a multiplier
INT32 = torch.iinfo(torch.int32)
TIE = 2.0**-19  # of a tensor's largest value: what float32 may be wrong by, before it rounds


@dataclass(frozen=True)
class Integers:
    """A tensor on a grid: it stands for (values - zero_point) scale. Values int64; scale float64,
    one or one a channel."""

    values: Tensor
    scale: Tensor  # () or broadcastable to values
    zero_point: Tensor

    @property
    def centred(self) -> Tensor:
        return self.values - self.zero_point

    def sum(self) -> "Sum":
        return Sum([(self.centred, self.scale)])


@dataclass(frozen=True)
class Sum:
    """What an integer operation leaves before it is rounded to a grid: sum_i terms_i scale_i, then clamped in turn."""

    terms: list[tuple[Tensor, Tensor]]
    clamps: list[tuple[Tensor | float | None, Tensor | float | None]] = field(default_factory=list)

    def floats(self) -> Tensor:
        x = torch.stack(torch.broadcast_tensors(*(t * s for t, s in self.terms))).sum(0).float()
        for low, high in self.clamps:
            x = x if low is None else x.clamp(min=low)
            x = x if high is None else x.clamp(max=high)
        return x


@dataclass(frozen=True)
class Execution:
    """outputs: floats, as the model returns them. integers: by the name of the quantizer's node, as the grid numbers
    them.

    ties: by the same name, which elements lie so near a tie between two steps that float32 may round them either way.
    """

    outputs: list[Tensor]
    integers: dict[str, Tensor]
    ties: dict[str, Tensor]
    in_float: list[str]


@torch.no_grad()
def execute(checkpoint: GraphModule, images: Tensor) -> Execution:
    """Run a checkpoint's graph (`zaq::fake_quantize` nodes on its edges) on normalised images (N, C, H, W) in integers.

    Raises RunError where a sum does not fit int32.
    """
    executor = _Executor(checkpoint)
    result = executor.run(images)
    return Execution(
        [_floats(r) for r in pytree.tree_leaves(result, is_leaf=_is_ours)],
        executor.integers,
        executor.ties,
        executor.in_float,
    )


def multiplier(ratio: Tensor, bits: int = MANTISSA) -> tuple[Tensor, Tensor]:
    """A positive ratio as (mantissa, shift), int64 both: ratio ~ mantissa 2^-shift, mantissa <= 2^bits.

    (Jacob et al. 2018, eq. 6, with the power of two in the shift.) Raises ValueError for a ratio too large to shift.
    """
    fraction, exponent = torch.frexp(ratio.double())
    shift = bits - exponent.long()
    if int(shift.min()) < 1:
        raise ValueError(f"a ratio of scales of {float(ratio.max()):g} is too large for a {bits}-bit multiplier")
    mantissa = (fraction * 2.0**bits).round().long()
    too_far = (shift - 62).clamp(min=0)  # far below one step: keep the shift within int64
    return mantissa >> too_far, shift - too_far


def requantize(terms: Sequence[tuple[Tensor, Tensor]], scale: Tensor) -> Tensor:
    """round(sum_i terms_i scale_i / scale), half to even, in integers: terms int64 within int32, scales float64.

    All terms share the shift of the largest ratio, so that they are added before the one rounding.
    """
    bits = MANTISSA - (len(terms) - 1).bit_length()
    ratios = torch.stack(torch.broadcast_tensors(*(s / scale for _, s in terms)))
    _, shift = multiplier(ratios.amax(0), bits)
    total: Tensor | int = 0
    for (term, _), ratio in zip(terms, ratios, strict=True):
        total = total + term * torch.ldexp(ratio, shift).round().long()
    assert isinstance(total, Tensor)
    half = torch.ones_like(shift) << (shift - 1)
    rounded = (total + half) >> shift
    tie = (total & (2 * half - 1)) == half
    return rounded - (tie & (rounded % 2 == 1)).long()


class _Executor(Interpreter):
    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.integers: dict[str, Tensor] = {}
        self.ties: dict[str, Tensor] = {}
        self.in_float: list[str] = []

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target is torch.ops.zaq.fake_quantize.default:
            quantized = _quantize(*args)
            if not isinstance(n.args[0], Node) or n.args[0].op != "get_attr":
                self.integers[n.name] = quantized.values
                self.ties[n.name] = _ties(args[0], quantized.scale)
            return quantized
        if not any(_is_ours(a) for a in pytree.tree_leaves((args, kwargs), is_leaf=_is_ours)):
            return n.target(*args, **kwargs)  # type: ignore[operator]
        done = _compute(n, args, kwargs)
        if done is None:
            self.in_float.append(n.name)
            args, kwargs = pytree.tree_map(_floats, (args, kwargs), is_leaf=_is_ours)
            return n.target(*args, **kwargs)  # type: ignore[operator]
        for term, _ in done.terms if isinstance(done, Sum) else ():
            if int(term.amin()) < INT32.min or int(term.amax()) > INT32.max:
                raise RunError(
                    f"{n.name}: a sum of products does not fit the 32 bits of an integer kernel's accumulator."
                )
        return done


def _compute(n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Integers | Sum | int | None:
    """The node's result on integers; None where it has none."""
    x = args[0]
    if n.target in WEIGHTED and isinstance(x, Integers) and isinstance(args[1], Integers):
        return _weighted(n, x, args[1], *args[2:])
    if n.target in MATMULS and isinstance(x, Integers) and isinstance(args[1], Integers):
        return Sum([((x.centred.double() @ args[1].centred.double()).round().long(), x.scale * args[1].scale)])
    if n.target is aten.add.Tensor and _is_ours(x) and _is_ours(args[1]) and not kwargs:
        return None if _clamped(x, args[1]) else Sum([*_sum(x).terms, *_sum(args[1]).terms])
    if n.target is aten.mul.Tensor and isinstance(x, Integers) and isinstance(args[1], Integers):
        return Sum([(x.centred * args[1].centred, x.scale * args[1].scale)])
    if n.target is aten.cat.default and all(isinstance(t, Integers) and not t.scale.dim() for t in x):
        return _cat(x, args[1] if len(args) > 1 else 0)
    if n.target in CLAMPS and _is_ours(x):
        return Sum(_sum(x).terms, [*_sum(x).clamps, _ends(n, args)])
    if isinstance(x, Integers) and not x.scale.dim():
        return _pooled_or_moved(n, x, args, kwargs)
    if isinstance(x, Sum) and n.target in LINEAR_MOVES and not any(s.dim() for _, s in x.terms):
        return Sum([(_on_floats(n, t, args, kwargs), s) for t, s in x.terms], x.clamps)
    return None


def _weighted(n: Node, x: Integers, weight: Integers, bias: Tensor | None = None, *rest: Any) -> Sum:
    products = n.target(x.centred.double(), weight.centred.double(), None, *rest)  # type: ignore[operator]
    along = (-1, *[1] * (products.dim() - 2)) if products.dim() > 2 else (-1,)
    channels = products.shape[1] if products.dim() > 2 else products.shape[-1]
    step = x.scale * weight.scale.reshape(-1)
    if n.target in TRANSPOSED and len(step) > 1:  # groups share the scales of their channels
        step = step.repeat(channels // len(step))
    total = products.round().long()
    if bias is not None:
        total = total + (bias.double() / step).round().long().expand(channels).view(along)
    return Sum([(total, step.view(along) if len(step) > 1 else step.view(()))])


def _cat(parts: list[Integers], dim: int) -> Sum:
    """Concatenation of tensors on grids of their own: a scale for each index of `dim`."""
    values = torch.cat([p.centred for p in parts], dim)
    shape = [-1 if d == dim % values.dim() else 1 for d in range(values.dim())]
    return Sum([(values, torch.cat([p.scale.expand(p.values.shape[dim]) for p in parts]).view(shape))])


def _pooled_or_moved(
    n: Node, x: Integers, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Integers | Sum | int | None:
    if n.target is aten.mean.dim:
        total = x.centred.sum(args[1], keepdim=bool(args[2]) if len(args) > 2 else False)
        count = x.values.numel() // max(total.numel(), 1)
        return Sum([(total, x.scale / count)])
    if n.target is aten.avg_pool2d.default:
        kernel, *rest = args[1:]
        padding, include = (rest[1] if len(rest) > 1 else 0), (rest[3] if len(rest) > 3 else True)
        if len(rest) > 4 or (not include and any(pytree.tree_leaves(padding))) or (len(rest) > 2 and rest[2]):
            return None  # windows of several sizes
        size = int(torch.tensor(kernel).expand(2).prod())
        summed = F.avg_pool2d(x.centred.double(), *args[1:]) * size  # exact: sums of integers
        total = summed.round().long()
        return Sum([(total, x.scale / size)])
    if n.target in PADS and moves(n):
        return Integers(_on_floats(n, x.centred, args, kwargs) + x.zero_point, x.scale, x.zero_point)
    if n.target in MOVES:
        return Integers(_on_floats(n, x.values, args, kwargs), x.scale, x.zero_point)
    if n.target is aten.sym_size.int:
        return int(x.values.shape[args[1]])
    return None


def _on_floats(n: Node, values: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """An operation that only moves values, on integers: not all of torch's kernels take them as such."""
    moved: Tensor = n.target(values.double(), *args[1:], **kwargs)  # type: ignore[operator]
    return moved.round().long()


def _quantize(x: Any, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int) -> Integers:
    """What QuantizeLinear and Clip compute, on the result of integer operations or on floats."""
    dims = (x.terms[0][0] if isinstance(x, Sum) else x.values if isinstance(x, Integers) else x).dim()
    shape = [-1 if d == axis else 1 for d in range(dims)] if axis >= 0 else []
    step, zero = scale.view(shape), zero_point.view(shape).long()
    if not _is_ours(x):
        values = (x / step).round().long() + zero
    else:
        values = requantize(_sum(x).terms, step.double()) + zero
        for low, high in _sum(x).clamps:  # rounding keeps order: clamped and rounded is rounded and clamped
            values = values.clamp(_on_grid(low, step, zero), _on_grid(high, step, zero))
    return Integers(values.clamp(quant_min, quant_max), step.double(), zero)


def _ties(x: Any, step: Tensor) -> Tensor:
    terms = _sum(x).terms if _is_ours(x) else [(x.double(), torch.ones(()).double())]
    position = torch.stack(torch.broadcast_tensors(*(t * (s / step) for t, s in terms)))
    reach = TIE * position.abs().sum(0).amax()
    total: Tensor = position.sum(0)
    return (total - total.floor() - 0.5).abs() <= reach


def _on_grid(end: Tensor | float | None, step: Tensor, zero: Tensor) -> Tensor | None:
    return None if end is None else (torch.as_tensor(end) / step).round().clamp(INT32.min, INT32.max).long() + zero


def _ends(n: Node, args: tuple[Any, ...]) -> tuple[Tensor | float | None, Tensor | float | None]:
    if n.target is aten.relu.default:
        return 0.0, None
    default: tuple[Any, Any] = (-1.0, 1.0) if n.target is aten.hardtanh.default else (None, None)
    low, high = (*args[1:3], *default[len(args) - 1 :])
    return low, high


def _is_ours(value: Any) -> bool:
    return isinstance(value, Integers | Sum)


def _clamped(*values: Any) -> bool:
    return any(isinstance(v, Sum) and v.clamps for v in values)


def _sum(value: Integers | Sum) -> Sum:
    return value if isinstance(value, Sum) else value.sum()


def _floats(value: Any) -> Any:
    return _sum(value).floats() if _is_ours(value) else value
