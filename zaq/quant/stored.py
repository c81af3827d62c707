"""Weights that are integers in the file and floats once it is loaded: of layers that compute in float because that is
faster, and need not be four times as large for it.

Each output channel has a scale of 16 significant bits, so that an integer of 8 bits times it is a float without any
rounding: whoever has the floats finds the integers and the scale again (`export.integers.store_rounded`).
"""

import torch
from torch import Tensor

__all__ = ["LARGEST", "rounded"]

LARGEST = 127  # of an integer; symmetric
SIGNIFICANT = 16  # bits of a scale: with the 7 of an integer, fewer than the 24 of a float32


def rounded(weight: Tensor, axis: int) -> Tensor:
    """A weight of float32 as whole steps of each channel's scale along `axis`; what is rounded already stays."""
    channels = weight.movedim(axis, 0).flatten(1)
    mantissa, exponent = torch.frexp(channels.abs().amax(1) / LARGEST)
    scale = torch.ldexp(torch.ceil(torch.ldexp(mantissa, torch.tensor(SIGNIFICANT))), exponent - SIGNIFICANT)
    scale = torch.where(scale > 0, scale, 1.0)
    steps = (channels / scale[:, None]).round()
    return (steps * scale[:, None]).reshape(weight.movedim(axis, 0).shape).movedim(0, axis)
