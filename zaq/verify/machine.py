"""What this machine computes with: versions, the processor's instructions, devices; and whether onnxruntime has integer
kernels here, which is found out by running one.
"""

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from zaq.compute.devices import devices
from zaq.export.session import session
from zaq.verify.kernels import kernels

__all__ = ["IntegerKernels", "facts", "integer_kernels"]

PACKAGES = (
    "zaq", "torch", "onnx", "onnxruntime", "onnxscript", "numpy", "timm", "torchvision", "onnx2torch", "pycocotools",
    "lightning-fabric", "submitit",
)  # fmt: skip
CHANNELS, SIDE, RUNS = 64, 32, 15  # of the convolution that is timed
OF_USE = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sse4_1")


@dataclass(frozen=True)
class IntegerKernels:
    """Of one convolution: whether onnxruntime runs it in integers, the kernel's name, and the median milliseconds of
    the integer one and of the same in float, each on one thread.
    """

    used: bool
    kernel: str
    integer_ms: float
    float_ms: float


def facts() -> dict[str, Any]:
    """Versions by package (None: not installed), the processor, and the devices that torch has."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": _instructions(),
        "torch computes with": torch.backends.cpu.get_cpu_capability(),
        "torch threads": torch.get_num_threads(),
        "devices": devices(),
        "onnxruntime providers": ort.get_available_providers(),
    }


def integer_kernels() -> IntegerKernels:
    """Run a quantized convolution and the same one in float, and look at what onnxruntime made of the former."""
    content = {quantized: _convolution(quantized).SerializeToString() for quantized in (True, False)}
    ran = kernels(content[True])
    kernel = next((name for name in ran.counts if "Conv" in name), "none")
    seconds = {quantized: _seconds(model) for quantized, model in content.items()}
    return IntegerKernels(kernel == "QLinearConv", kernel, 1000 * seconds[True], 1000 * seconds[False])


def _convolution(quantized: bool) -> ModelProto:
    """Two 3x3 convolutions, one behind the other, as `zaq` writes them."""
    random = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {"scale": np.float32(0.02), "zero": np.uint8(0)}
    nodes, value = [], "input"
    for layer in "ab":
        integers = random.integers(-60, 60, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
        scale = np.full(CHANNELS, 1e-3, np.float32)
        weight, read = f"w{layer}", value
        if quantized:
            constants |= {f"i{layer}": integers, f"s{layer}": scale, f"z{layer}": np.zeros(CHANNELS, np.int8)}
            nodes.append(
                helper.make_node("DequantizeLinear", [f"i{layer}", f"s{layer}", f"z{layer}"], [weight], axis=0)
            )
            nodes += _rounded(value, f"{value}_r")
            read = f"{value}_r"
        else:
            constants[weight] = integers.astype(np.float32) * np.float32(1e-3)
        nodes.append(helper.make_node("Conv", [read, weight], [f"c{layer}"], pads=[1] * 4))
        value = f"c{layer}"
    nodes += _rounded(value, "output") if quantized else [helper.make_node("Identity", [value], ["output"])]
    ends = [helper.make_tensor_value_info(n, 1, [1, CHANNELS, SIDE, SIDE]) for n in ("input", "output")]
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _rounded(value: str, name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [name]),
    ]


def _seconds(model: bytes) -> float:
    """The median time of a run, the first of which does not count."""
    run, taken = session(model, threads=1), []
    image = np.random.default_rng(1).random((1, CHANNELS, SIDE, SIDE), np.float32)
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        run.run(None, {"input": image})
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _processor() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str] | None:
    """Those of `OF_USE` that the processor has; None where the system does not say."""
    known = _cpuinfo()
    flags = (known.get("flags") or known.get("Features") or "").split()
    return [name for name in OF_USE if name in flags] if flags else None
