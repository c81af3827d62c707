"""What is in a model and what would become of it, without doing it."""

import dataclasses
import textwrap
from collections import Counter
from typing import Any

import torch
from torch.fx import GraphModule, Node

from zaq.config.bits import QConfig
from zaq.engine.task import NO_BATCH_NORM, Task
from zaq.ir.nodes import activations, attribute, image_sizes, input_node
from zaq.ir.ops import CONVS, TRANSPOSED
from zaq.ir.taps import taps
from zaq.passes.channels import regions
from zaq.passes.fold import fold
from zaq.quant.asked import ask
from zaq.quant.edges import weighted_layers
from zaq.quant.placement import place
from zaq.sources import Source

__all__ = ["describe_model", "facts"]

UNEQUAL = 8.0  # a median channel then has a range of 3 bits less than the largest, under one scale
SHOWN = 6  # layers in a warning
SMOOTH = (
    "no scale passes through it, so nothing is equalized across; the little below zero shares its steps with all above"
)
ROUGH = {  # what is hard on a quantizer, and why
    "hardtanh": "equalization gives every channel a clip of its own; -s relu6_to_relu=true would change the function",
    "hardswish": SMOOTH,
    "silu": SMOOTH,
    "gelu": SMOOTH,
    "erf": "a GELU in parts: no scale passes through it, and its parts are computed in float",
    "layer_norm": "computed in float; what it reads often has a few channels far greater than the rest",
}


def facts(model: Source, qconfig: QConfig) -> dict[str, Any]:
    """Input, operations, what folds, what would be quantized at which bits, parameters, multiply-accumulates."""
    folded, unfolded = fold(model.graph)
    ask(folded, qconfig)
    card = model.card.override(input=image_sizes(input_node(folded).meta["val"]))
    _, placement = place(folded, qconfig, card, unlike=Task(folded, qconfig, card).unlike)
    layers = []
    for node in weighted_layers(folded):
        source, weight = placement.layers[node.name]
        layers.append(
            {
                "layer": node.name,
                "weight": weight,
                "shape": list(attribute(folded, weight).shape),
                "weight_bits": placement.weights[weight].bits,
                "input": source or "float",
                "input_bits": placement.activations[source].bits if source else 32,
                "macs": _macs(folded, node),
            }
        )
    warnings = _warnings(folded, [n.name for n in weighted_layers(folded)])
    return {
        "name": model.name,
        "sha256": model.sha256,
        "card": model.card.to_dict(),
        "input": [input_node(folded).name, *model.card.input],
        "parameters": sum(attribute(folded, str(n.target)).numel() for n in _unique(folded)),
        "macs": sum(row["macs"] for row in layers),
        "operations": dict(Counter(str(n.target).removeprefix("aten.") for n in activations(folded)).most_common()),
        "batch_norms_folded": sum("bn" in n.meta for n in folded.graph.nodes),
        "batch_norms_left": unfolded,
        "equalizes": [dataclasses.asdict(r) for r in regions(folded)],
        "taps": taps(folded),
        "layers": layers,
        "activations": {name: q.bits for name, q in placement.activations.items()},
        "in_float": placement.in_float,
        "warnings": [*model.notes, *warnings],
    }


def describe_model(model: Source, qconfig: QConfig) -> str:
    """The facts as text for a terminal."""
    f = facts(model, qconfig)
    equalizes = [f"{', '.join(r['writers'])} -> {', '.join(r['readers'])} ({r['channels']})" for r in f["equalizes"]]
    names, weights = (max([12, *(len(row[key]) for row in f["layers"])]) + 2 for key in ("layer", "weight"))
    card = model.card
    normalisation = (
        "already normalised (no card, no flags)" if not card.knows_pixels else f"mean {card.mean}, std {card.std}"
    )
    lines = [
        f"{f['name']}: input {tuple(card.input)}, {normalisation}",
        f"  {f['parameters']:,} parameters, {f['macs'] / 1e6:,.1f} M multiply-accumulates a sample",
        "  operations: " + ", ".join(f"{n} {k}" for k, n in f["operations"].items()),
        f"  {f['batch_norms_folded']} batch norms fold into the layer before them; {len(f['batch_norms_left'])} do not",
        *(f"    {reason}" for reason in f["batch_norms_left"]),
        textwrap.fill(f"  {len(equalizes)} regions equalize: {'; '.join(equalizes)}", 140, subsequent_indent="    "),
        f"  compared at: {', '.join(f['taps']) or 'outputs only'}",
        f"at {qconfig}:",
        f"  {'layer':<{names}}{'weight':<{weights}}{'shape':<20}{'w':>3}{'a':>4}  input",
    ]
    for row in f["layers"]:
        shape = "x".join(map(str, row["shape"]))
        named = f"  {row['layer']:<{names}}{row['weight']:<{weights}}{shape:<20}"
        lines.append(f"{named}{row['weight_bits']:>3}{row['input_bits']:>4}  {row['input']}")
    others = [
        f"{name} {bits}" for name, bits in f["activations"].items() if name not in {r["input"] for r in f["layers"]}
    ]
    lines.append(f"  other tensors: {', '.join(others) or 'none'}")
    lines += [f"  stays in float: {name}" for name in f["in_float"]]
    lines += [f"warning: {text}" for text in f["warnings"]]
    return "\n".join(lines)


def _warnings(gm: GraphModule, layers: list[str]) -> list[str]:
    """What will cost accuracy at few bits, and what methods cannot do here."""
    kinds = Counter(str(n.target).removeprefix("aten.").partition(".")[0] for n in activations(gm))
    kinds["layer_norm"] += kinds.pop("native_layer_norm", 0)
    gates = [n for n in gm.graph.nodes if n.target is torch.ops.aten.sigmoid.default]
    kinds["silu"] = sum(
        any(n.args[0] in user.args and user.target is torch.ops.aten.mul.Tensor for user in n.users) for n in gates
    )
    found = [f"{kinds[kind]} {kind}: {why}" for kind, why in ROUGH.items() if kinds[kind]]
    unequal = {n.name: ratio for n in gm.graph.nodes if n.name in layers and (ratio := _inequality(gm, n)) > UNEQUAL}
    if unequal:
        worst = sorted(unequal, key=lambda name: -unequal[name])[:SHOWN]
        named = ", ".join(f"{name} {unequal[name]:.0f}x" for name in worst) + (", ..." if len(unequal) > SHOWN else "")
        found.append(
            f"unequal channels in {len(unequal)} layers (largest range over the median's: {named}); one scale a "
            "tensor loses them"
        )
    if not any("bn" in n.meta for n in gm.graph.nodes):
        found.append(NO_BATCH_NORM)
    return found


def _inequality(gm: GraphModule, node: Node) -> float:
    """The largest range of an output channel's weights over the median one."""
    weight = attribute(gm, str(node.args[1].target))  # type: ignore[union-attr]
    ranges = weight.detach().abs().transpose(0, 1 if node.target in TRANSPOSED else 0).flatten(1).amax(1)
    return float(ranges.max() / ranges.median().clamp(min=torch.finfo(ranges.dtype).tiny))


def _unique(gm: Any) -> list[Any]:
    return list({n.target: n for n in gm.graph.nodes if n.op == "get_attr"}.values())


def _macs(gm: Any, node: Any) -> int:
    """Multiply-accumulates of a layer for one sample: weight elements times positions, or rows of tokens."""
    weight = attribute(gm, str(node.args[1].target))
    at = (node if node.target in CONVS else node.args[0]).meta[
        "val"
    ]  # a transposed convolution works at its input's positions
    elements, samples = (
        int(n if isinstance(n, int) else n.node.hint) for n in (at.numel(), input_node(gm).meta["val"].shape[0])
    )
    return int(weight.numel() * elements // (at.shape[1] * samples))
