"""What other runtimes need of a file, each with the source of its rule.

Nothing here runs on those runtimes: a target is what their documentation and code say they take. Files of every target
are checked in onnxruntime.
"""

from dataclasses import dataclass

from zaq.config.plugins import lookup
from zaq.errors import BitsError

__all__ = ["TARGETS", "Target", "target_of"]

EVERY_GRID = ("per_channel", "per_channel_affine", "per_tensor", "per_tensor_affine", "per_conv_channel")


@dataclass(frozen=True)
class Target:
    """What a runtime takes. Of grids the first is used where none is asked for, and only those listed may be."""

    name: str
    rule: str
    sources: tuple[str, ...]
    activations: tuple[str, ...] = ("affine", "symmetric")
    weights: tuple[str, ...] = EVERY_GRID
    float_biases: bool = False  # else int32, in steps of s_x s_w
    act_bits: int = 2  # the fewest bits of an activation; below 8 an integer Clip stands between Q and DQ

    @property
    def integer_clips(self) -> bool:
        """Whether anything may stand between QuantizeLinear and DequantizeLinear."""
        return self.act_bits < 8

    def check(self, activations: str, weights: str, bits: int) -> None:
        """Raise BitsError for grids or for bits of an activation that this runtime does not take."""
        for what, value, taken in (("activations", activations, self.activations), ("weights", weights, self.weights)):
            if value not in taken:
                raise BitsError(f"target {self.name}: {what} are {value}; it takes {' or '.join(taken)}. {self.rule}")
        if bits < self.act_bits:
            raise BitsError(
                f"target {self.name}: activations of {bits} bits need an integer Clip between QuantizeLinear and "
                "DequantizeLinear, "
                f"which it does not take; keep activations, and --first-last, at 8 bits, as in --bits w4a8."
            )


ORT = "https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/python/tools/quantization/"
ORT_GUIDE = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"

TARGETS = {
    target.name: target
    for target in (
        Target(
            "onnxruntime",
            "uint8 activations and int8 weights, no two products of which saturate the 16 bits of x86 without VNNI.",
            (ORT_GUIDE, ORT + "quantize.py"),
        ),
        Target(
            "onnxruntime-arm",
            "ARM kernels prefer int8 activations with zero point 0 and int8 weights, and do not saturate.",
            (ORT_GUIDE, ORT + "quantize.py"),
            activations=("symmetric", "affine"),
        ),
        Target(
            "tensorrt",
            "Symmetric int8 with zero point 0 only; DequantizeLinear takes no int32, so biases stay float.",
            (
                "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html",
                "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md",
                "https://github.com/microsoft/onnxruntime/issues/14229",
            ),
            activations=("symmetric",),
            weights=("per_channel", "per_tensor", "per_conv_channel"),
            float_biases=True,
            act_bits=8,
        ),
        Target(
            "openvino",
            "Integer convolutions read uint8 activations (int8 ones with AMX only) and int8 weights, 8 bits each.",
            (
                "https://github.com/openvinotoolkit/openvino/blob/master/src/plugins/intel_cpu/src/transformations/transformation_pipeline.cpp",
                "https://github.com/openvinotoolkit/nncf/blob/develop/nncf/common/hardware/configs/cpu.json",
            ),
            activations=("affine",),
            weights=("per_channel", "per_tensor", "per_conv_channel"),
            act_bits=8,
        ),
        Target(
            "qnn",
            "uint8 activations; a scale per channel for convolutions only, int8 and symmetric; int32 biases.",
            (
                ORT + "execution_providers/qnn/quant_config.py",
                "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html",
            ),
            activations=("affine",),
            weights=("per_conv_channel", "per_tensor", "per_tensor_affine"),
            act_bits=8,
        ),
    )
}


def target_of(name: str) -> Target:
    """The target of that name, ours or an installed package's; BitsError, with the near one, if there is none."""
    return lookup("zaq.targets", "target", name, TARGETS)
