"""How often a quantized classifier will answer as its float network does on real images, estimated without one.

What is known without data is put into a line, and its logistic is the share of equal answers. `estimate.json` holds the
line and how far it was off on networks that it was not fitted on; benchmarks/estimate.py writes it, by images of
training sets. A case that is unlike all that it was fitted on gets a sentence, and no figure.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from zaq.config.bounds import plain_json
from zaq.ir.taps import with_taps
from zaq.report.outputs import sqnr
from zaq.synth.losses import relative_discrepancy

__all__ = ["features_of"]


@torch.no_grad()
def features_of(teacher: GraphModule, student: GraphModule, samples: Tensor, batch: int) -> dict[str, float]:
    """What student and teacher, both classifiers, differ by on held-out samples (N, C, H, W), by name.

    The first half of them is as it was drawn, the second was moved to where the two differ (`HoldOut`). Of each half:
    `agreement`, the share of equal answers; `sqnr`, of the outputs, in dB; `loss`, the held-out loss; `noise`, what an
    answer's lead over the next one is changed by, in parts of the middle lead; `confidence`, the float network's mean
    probability of its answer.
    """
    found = {}
    for kind, part in zip(("drawn", "moved"), samples.chunk(2), strict=True):
        p, q = (torch.cat([m(x)[0][0] for x in part.split(batch)]) for m in (with_taps(g, []) for g in (teacher, student)))
        (best, rows), changes = p.topk(2), q - p
        lead, change = p.gather(1, rows).diff().neg().squeeze(1), changes.gather(1, rows).diff().squeeze(1)
        found |= {
            f"{kind}_agreement": float((p.argmax(1) == q.argmax(1)).float().mean()),
            f"{kind}_sqnr": sqnr(p, q) or 0.0,
            f"{kind}_loss": float(relative_discrepancy([p], [q])),
            f"{kind}_noise": float(change.square().mean().sqrt() / lead.median()),
            f"{kind}_confidence": float(p.softmax(1).amax(1).mean()),
        }
    return found
