"""Bits of weights and activations, and which tensors have them: the choices of a run as frozen records."""

import re
from dataclasses import dataclass, field
from typing import Any

from zaq.config.targets import Target, target_of
from zaq.errors import BitsError, unknown

__all__ = [
    "ACTIVATION_GRIDS", "EFFORTS", "FLOAT", "LATENCY", "PLACEMENTS", "STORED", "WEIGHT_GRIDS", "Preset", "QConfig",
    "bits_of",
]  # fmt: skip

EFFORTS = ("fast", "default", "best")


# How a weight's grid lies: a scale for each output channel or one for all; symmetric (signed), or affine with a zero
# point. `per_conv_channel`: per channel for convolutions, one scale for a linear layer.
WEIGHT_GRIDS = ("per_channel", "per_channel_affine", "per_tensor", "per_tensor_affine", "per_conv_channel")
# How an activation's lies, one scale a tensor: affine, unsigned with a zero point; or symmetric, signed with zero point
# 0.
ACTIVATION_GRIDS = ("affine", "symmetric")


@dataclass(frozen=True)
class Preset:
    """Which tensors a protocol quantizes, and its usual choices for the rest."""

    image: int | None  # bits of the input; None: float
    reads: bool  # what a convolution or linear layer reads
    merges: bool  # operands and results of add, mul, cat, average pooling; what a convolution writes
    twice: bool  # what a merge reads at 8 bits and a layer at fewer is quantized for each; else once, at the fewer
    clamps: bool  # what a ReLU or its like writes, and nothing else
    second: int | None  # bits of what the first layer writes, where it differs
    weights: str
    first_last: int | None


# `integer` runs on integer kernels, and so does `shared`, whose residual stream has the bits that layers read it at,
# too. The other two are the protocols of the literature, for comparison only: `gdfq` that of ZeroQ, GDFQ, Qimera,
# IntraQ, ..., SynQ and ZAQ's code, `brecq` that of BRECQ, QDrop, Genie.
PLACEMENTS = {
    "integer": Preset(8, True, True, True, False, None, "per_channel", 8),
    "shared": Preset(8, True, True, False, False, None, "per_channel", 8),
    "gdfq": Preset(None, False, False, False, True, None, "per_channel_affine", None),
    "brecq": Preset(None, True, False, False, False, 8, "per_channel_affine", 8),
}


FLOAT = "float"  # what is asked of a layer that is not to be quantized
LATENCY = "latency"  # what a placement is chosen for by timing (`cost.fastest`)
STORED = "stored"  # of one that computes in float, and whose weight lies in the file in 8 bits
SPELLED = "w<bits>a<bits>, as in w4a4; or one number for both, as in 8 or int8"


def bits_of(text: str) -> tuple[int, int] | None:
    """Bits of weights and of activations: `w4a8`, or `8` or `int8` for both. None for anything else."""
    match = re.fullmatch(r"w(\d{1,9})a(\d{1,9})|(?:int)?(\d{1,9})", text.strip().lower())
    return match and (int(match[1] or match[3]), int(match[2] or match[3]))


@dataclass(frozen=True)
class QConfig:
    """Bits of weights and activations, of the first and the last layer (None: the same), and where they go.

    `layers` names layers with bits of their own, by a regular expression that is to fit the whole name of a layer's
    module, or of a module around it: {"layer4": "8", "fc": "w8a4", "stem.*": "float"}; the last that fits counts.
    A layer that is `stored` computes in float too, and its weight lies in the file in 8 bits.
    `depthwise`: bits of the weights of depthwise convolutions, and of what these read; None: as of any other layer.
    They are a hundredth of a mobile network's weights, and lose more by rounding than all others.
    `layer_bits` has bits of single weights, by the weight's name. `target_size` (bytes of all weights) or
    `average_bits` (of a weight) asks for a search of them. `target` is the runtime the file is for
    (`zaq.config.targets`); what it does not take is refused.
    """

    weight_bits: int
    act_bits: int
    first_last: int | None = 8
    placement: str = "integer"
    weights: str = "per_channel"
    layer_bits: dict[str, int] = field(default_factory=dict)
    target_size: int | None = None
    average_bits: float | None = None
    activations: str = "affine"
    target: str = "onnxruntime"
    depthwise: int | None = None
    layers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pattern, text in self.layers.items():
            _check_layer(pattern, text)
        if self.layers and self.mixed:
            named = ", ".join(self.layers)
            raise BitsError(f"bits: a search finds the bits of all weights, so that {named} cannot have its own.")
        for what, bits in (("weight", self.weight_bits), ("activation", self.act_bits), *self.layer_bits.items()):
            if not 2 <= bits <= 8:
                raise BitsError(f"bits: {what}s of {bits} bits; 2 to 8 are supported, as in w4a4 or w8a8.")
        if self.depthwise is not None and not 2 <= self.depthwise <= 8:
            raise BitsError(f"depthwise: {self.depthwise} bits; 2 to 8 are supported, as in w4a4d8.")
        if self.first_last is not None and not 2 <= self.first_last <= 8:
            raise BitsError(f"first-last: {self.first_last} bits; 2 to 8 are supported, or 'same'.")
        if self.average_bits is not None and not 2 <= self.average_bits <= 8:
            raise BitsError(
                f"bits: weights of {self.average_bits} bits on average; 2.0 to 8.0 are supported, as in w4.0a4."
            )
        if self.placement not in PLACEMENTS:
            raise BitsError("placement: " + unknown("placement", self.placement, PLACEMENTS))
        if self.weights not in WEIGHT_GRIDS:
            raise BitsError("weights: " + unknown("weight grid", self.weights, WEIGHT_GRIDS))
        if self.activations not in ACTIVATION_GRIDS:
            raise BitsError("activations: " + unknown("activation grid", self.activations, ACTIVATION_GRIDS))
        if self.depthwise is not None and (self.mixed or not self.preset.merges):
            why = "bits that are searched" if self.mixed else f"placement {self.placement}"
            raise BitsError(
                f"depthwise: bits of its own do not go with {why}; take w4a4 or the like, placement integer."
            )
        runtime = target_of(self.target)
        if not self.preset.merges and self.target != "onnxruntime":
            raise BitsError(
                f"target {self.target} goes with placement integer; {self.placement} is for comparison, not for "
                "devices."
            )
        runtime.check(self.activations, self.weights, min(self.act_bits, self.first_last or self.act_bits))

    @classmethod
    def parse(
        cls,
        text: str,
        first_last: int | str | None = "",
        placement: str = "integer",
        weights: str | None = None,
        target_size: int | None = None,
        activations: str | None = None,
        target: str = "onnxruntime",
        depthwise: int | None = None,
        layers: dict[str, str] | None = None,
    ) -> "QConfig":
        """`w4a4` and the like; `8` or `int8` for w8a8; `w4a4d8`: depthwise convolutions at 8. Weights whose bits are
        searched: `mixed` or `mixeda6` (activations 8 bits, or 6) in a size, `w4.0a4` with 4.0 on average, the first
        and the last layer included.

        first_last "" and grids None: as the placement, or the target, has them. Raises BitsError for anything else.
        """
        if placement not in PLACEMENTS:
            raise BitsError("placement: " + unknown("placement", placement, PLACEMENTS))
        preset = PLACEMENTS[placement]
        end = preset.first_last if isinstance(first_last, str) else first_last
        runtime = target_of(target)
        grids: dict[str, Any] = {
            "weights": weights or (preset.weights if preset.weights in runtime.weights else runtime.weights[0]),
            "activations": activations or runtime.activations[0],
            "target": target,
            "depthwise": depthwise,
            "layers": layers or {},
        }
        mixed = re.fullmatch(r"mixed(?:a(\d{1,9}))?", text.strip().lower())
        if mixed:
            if target_size is None:
                raise BitsError("bits: 'mixed' needs a size to reach: --target-size 0.3MB.")
            return cls(8, int(mixed[1] or 8), end, placement, target_size=target_size, **grids)
        if target_size is not None:
            raise BitsError(f"target-size goes with --bits mixed, not with {text}.")
        match = re.fullmatch(r"w(\d{1,9}\.\d+|\d{1,9})a(\d{1,9})(?:d(\d{1,9}))?", text.strip().lower())
        both = bits_of(text)
        if match and match[3]:
            if depthwise not in (None, int(match[3])):
                raise BitsError(f"depthwise: {depthwise} bits, and bits {text} says {match[3]}; say it once.")
            grids["depthwise"], both = int(match[3]), bits_of(text.lower().partition("d")[0])
        if match and "." in match[1]:
            return cls(8, int(match[2]), end, placement, average_bits=float(match[1]), **grids)
        if both is None:
            raise BitsError(f"bits: {text!r} is not of the form {SPELLED}.")
        return cls(*both, end, placement, **grids)

    @property
    def preset(self) -> Preset:
        return PLACEMENTS[self.placement]

    @property
    def runtime(self) -> Target:
        return target_of(self.target)

    @property
    def mixed(self) -> bool:
        """Whether the bits of each weight are to be found."""
        return self.target_size is not None or self.average_bits is not None

    def __str__(self) -> str:
        weights = self.average_bits or self.weight_bits
        name = f"w{weights}a{self.act_bits}" if self.target_size is None else f"mixeda{self.act_bits}"
        return name + (f"d{self.depthwise}" if self.depthwise else "")

    def of_layer(self, first: bool, last: bool, depthwise: bool) -> tuple[int, int]:
        """Bits of a layer's weight, where `layers` or `layer_bits` does not name it, and of what it reads."""
        reads = self.first_last if self.first_last and last else self.depthwise if depthwise else None
        weight = self.first_last if self.first_last and (first or last) else self.depthwise if depthwise else None
        return weight or self.weight_bits, reads or self.act_bits


def _check_layer(pattern: str, text: str) -> None:
    """Raise BitsError for what is no regular expression, or no bits of a layer."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise BitsError(f"layer {pattern}: is no regular expression ({error}).") from error
    found = bits_of(str(text))
    if str(text) not in (FLOAT, STORED) and (found is None or not all(2 <= bits <= 8 for bits in found)):
        raise BitsError(f"layer {pattern}: {text!r} is none of 2 to 8 bits, as 8 or w4a8, nor {FLOAT!r} or {STORED!r}.")
