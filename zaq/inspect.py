"""What is in a model and what would become of it, without doing it."""

from collections import Counter
from typing import Any

from zaq.config import QConfig
from zaq.graph import CONVS, activations, input_node, taps
from zaq.nodes import attribute
from zaq.passes.fold import fold
from zaq.quant.placement import place, weighted_layers
from zaq.sources import Source

__all__ = ["describe_model", "facts"]


def facts(model: Source, qconfig: QConfig) -> dict[str, Any]:
    """Input, operations, what folds, what would be quantized at which bits, parameters, multiply-accumulates."""
    folded, unfolded = fold(model.graph)
    _, placement = place(folded, qconfig, model.card)
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
        "taps": taps(folded),
        "layers": layers,
        "activations": {name: q.bits for name, q in placement.activations.items()},
        "in_float": placement.in_float,
    }


def describe_model(model: Source, qconfig: QConfig) -> str:
    """The facts as text for a terminal."""
    f = facts(model, qconfig)
    card = model.card
    normalisation = "already normalised (no card, no flags)" if card.normalised else f"mean {card.mean}, std {card.std}"
    lines = [
        f"{f['name']}: input {tuple(card.input)}, {normalisation}",
        f"  {f['parameters']:,} parameters, {f['macs'] / 1e6:,.1f} M multiply-accumulates a sample",
        "  operations: " + ", ".join(f"{n} {k}" for k, n in f["operations"].items()),
        f"  {f['batch_norms_folded']} batch norms fold into the layer before them; {len(f['batch_norms_left'])} do not",
        *(f"    {reason}" for reason in f["batch_norms_left"]),
        f"  compared at: {', '.join(f['taps']) or 'outputs only'}",
        f"at {qconfig}:",
        f"  {'layer':<14}{'weight':<34}{'shape':<20}{'w':>3}{'a':>4}  input",
    ]
    for row in f["layers"]:
        shape = "x".join(map(str, row["shape"]))
        lines.append(f"  {row['layer']:<14}{row['weight']:<34}{shape:<20}{row['weight_bits']:>3}{row['input_bits']:>4}  {row['input']}")
    others = [f"{name} {bits}" for name, bits in f["activations"].items() if name not in {r["input"] for r in f["layers"]}]
    lines.append(f"  other tensors: {', '.join(others) or 'none'}")
    lines += [f"  stays in float: {name}" for name in f["in_float"]]
    return "\n".join(lines)


def _unique(gm: Any) -> list[Any]:
    return list({n.target: n for n in gm.graph.nodes if n.op == "get_attr"}.values())


def _macs(gm: Any, node: Any) -> int:
    """Multiply-accumulates of a layer for one sample: weight elements times positions, or rows of tokens."""
    weight = attribute(gm, str(node.args[1].target))
    at = (node if node.target in CONVS else node.args[0]).meta["val"]  # a transposed convolution works at its input's positions
    elements, samples = (int(n if isinstance(n, int) else n.node.require_hint()) for n in (at.numel(), input_node(gm).meta["val"].shape[0]))
    return int(weight.numel() * elements // (at.shape[1] * samples))
