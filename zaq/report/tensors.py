"""Every quantized tensor of a report: what it is, its grid, and how well the grid holds it."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from zaq.engine.state import State
from zaq.ir.nodes import attribute, input_node, module_of, shape_of
from zaq.ir.taps import with_taps
from zaq.quant.fake_quantize import FakeQuantize
from zaq.report.outputs import sqnr

__all__ = ["BINS", "histogram", "tensors"]

TOGETHER = 2**25  # bytes of activations that are looked at together
BINS = 32  # of a histogram
FAR = 1e6  # steps of a grid: infinities are counted there


@torch.no_grad()
def tensors(state: State) -> list[dict[str, Any]]:
    """A row a tensor, activations first: its module in the user's model, its grid, and the SQNR in dB, of weights
    against the float network's and of activations on a batch of synthetic samples. `histogram`: see there.
    """
    rows, placed = list[dict[str, Any]](), state.student.placement
    seen = _seen(state) if state.samples is not None else {}
    modules = {n.name: module_of(n) for n in state.task.teacher.graph.nodes}
    for name, quantizer in placed.activations.items():
        low, high = quantizer.limits()
        row = {
            "name": name,
            "module": modules.get(placed.tensors[name], ""),
            "kind": "activation",
            "bits": quantizer.bits,
            "scale": quantizer.scale[0].item(),
            "zero_point": int(quantizer.zero_point[0]),
            "low": low,
            "high": high,
        }
        rows.append(row | seen.get(name, {}))
    for name, quantizer in placed.weights.items():
        weight, exact = state.student.weight(name), attribute(state.task.teacher, name)
        rows.append(
            {
                "name": name,
                "module": name.rpartition(".")[0],
                "kind": "weight",
                "bits": quantizer.bits,
                "integers": [quantizer.quant_min, quantizer.quant_max],
                "scale": quantizer.scale.tolist(),
                "zero_point": quantizer.zero_point.tolist(),
                "seen_low": float(weight.min()),
                "seen_high": float(weight.max()),
                "elements": weight.numel(),
                "sqnr": sqnr(exact, quantizer(weight)),
                "histogram": histogram(quantizer, exact, quantizer(weight)),
            }
        )
    return rows


def histogram(quantizer: FakeQuantize, before: Tensor, after: Tensor) -> dict[str, Any]:
    """A tensor before and after it was quantized, in steps of its grid, code 0 of the grid at 0: BINS counts each, in
    equal bins from `low` to `high`; `grid`, its least and its greatest code; `clipped`, the share of `before` outside
    of the grid by more than the half step that rounding takes. Each channel of a weight is counted in its own steps.
    """
    shape = [1] * before.dim()
    if quantizer.axis >= 0:
        shape[quantizer.axis] = -1
    scale, zero = quantizer.scale.detach().view(shape), quantizer.zero_point.view(shape)
    x, y = ((value / scale + zero).clamp(-FAR, FAR) for value in (before, after))
    ends = float(quantizer.quant_min), float(quantizer.quant_max)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    return {
        "low": low,
        "high": high,
        "before": [int(n) for n in torch.histc(x, BINS, low, high)],
        "after": [int(n) for n in torch.histc(y, BINS, low, high)],
        "grid": list(ends),
        "clipped": float(((x < ends[0] - 0.5) | (x > ends[1] + 0.5)).float().mean()),
    }


def _seen(state: State) -> dict[str, dict[str, Any]]:
    """Of each quantizer of activations the range, the SQNR and the histogram on a batch of samples. As many tensors at
    a time as have TOGETHER bytes: all of them are more than training takes."""
    assert state.samples is not None
    of, some = state.student.placement.tensors, state.samples[: state.task.batch]
    sizes = {n.name: len(some) * 4 * math.prod(shape_of(n) or ()) for n in state.task.teacher.graph.nodes}
    image = input_node(state.task.teacher).name
    names, found = [n for n in dict.fromkeys(of.values()) if n != image], dict[str, dict[str, Any]]()
    ends = list(itertools.accumulate(sizes[n] for n in names))
    for _, group in itertools.groupby(zip(names, ends, strict=True), lambda pair: pair[1] // TOGETHER):
        inner = [name for name, _ in group]
        values = with_taps(state.task.teacher, inner)(some)[1], with_taps(state.student.module, inner)(some)[1]
        of_both = dict(zip(inner, zip(*values, strict=True), strict=True))
        for name, quantizer in state.student.placement.activations.items():
            if of[name] in of_both:
                p, q = of_both[of[name]]
                useful, rounded = p.clamp(*quantizer.known), quantizer(q)
                found[name] = {
                    "seen_low": float(p.min()),
                    "seen_high": float(p.max()),
                    "sqnr": sqnr(useful, rounded),
                    "histogram": histogram(quantizer, useful, rounded),
                }
    return found
