"""Steps of the student per second, against the plain way to write them, side by side in one run: python
benchmarks/training_step.py

| one step, w4a4, batch of 64, 2 threads | steps a second | times as long |
|---|---|---|
| as it is | 2.25 | 1.00 |
| the spatial relation map of ZAQ's code | 0.50 | 4.47 |
| the teacher's graph kept, and the images' | 1.90 | 1.18 |
| contiguous tensors | 2.00 | 1.13 |
| torch's learnable quantizers | 1.75 | 1.28 |
| all four: the plain way | 0.28 | 7.89 |
Medians of 15 on 2 cores of an AMD EPYC (AVX2), torch 2.13, 2026-11-22. The paper's relation map has most of it; "the
last three" was added after this run. Of a step as it is, convolutions take 68 %, quantizers 17 % (torch's profiler, one
thread).
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zaq import QConfig, sources
from zaq.engine.state import State
from zaq.engine.task import Task
from zaq.engine.work import Work
from zaq.ir.taps import with_taps
from zaq.passes.fold import fold
from zaq.quant.fake_quantize import FakeQuantize
from zaq.stages.training import student_optimizer
from zaq.synth.losses import output_discrepancy, relation_gaps

BATCH, REPEATS = 64, 15


class PlainQuantize(nn.Module):
    """What torch itself has for learned scales."""

    zero_point: Tensor

    def __init__(self, quantizer: FakeQuantize) -> None:
        super().__init__()
        self.scale, self.axis = quantizer.scale, quantizer.axis
        self.ends = (quantizer.quant_min, quantizer.quant_max)
        self.register_buffer("zero_point", quantizer.zero_point.float())

    def forward(self, x: Tensor) -> Tensor:
        if self.axis < 0:
            return torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.zero_point, *self.ends, 1.0)
        return torch._fake_quantize_learnable_per_channel_affine(
            x, self.scale, self.zero_point, self.axis, *self.ends, 1.0
        )


def state() -> State:
    model = sources.load("zoo:resnet20_cifar10")
    graph, _ = fold(model.graph)
    torch.manual_seed(0)
    made = State(Task(graph, QConfig.parse("w4a4"), model.card))
    with made.student.watching(), torch.no_grad():
        made.student(torch.randn(BATCH, 3, 32, 32))
    return made


def steps(kernels: bool, channels_last: bool, teacher_without_graph: bool, relation: str) -> Callable[[], None]:
    """One step of ZAQ's student, with each of what makes it fast or without."""
    made = state()
    optimizer = student_optimizer(made.student, 1e-3, 1e-4)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for value in (*made.task.teacher.parameters(), *made.student.module.parameters()):
        if value.dim() == 4:
            value.data = value.data.contiguous(memory_format=layout)
    if not kernels:
        for path, module in [*made.student.module.named_modules(remove_duplicate=False)]:
            if isinstance(module, FakeQuantize):
                made.student.module.set_submodule(path, PlainQuantize(module))
    teacher, student = with_taps(made.task.teacher, made.task.taps), with_taps(made.student.module, made.task.taps)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=layout)
    if not teacher_without_graph:
        images.requires_grad_()  # as an image straight out of a generator does

    def one() -> None:
        with torch.set_grad_enabled(not teacher_without_graph):
            p, wanted = teacher(images)
        q, found = student(images)
        Work().step(optimizer, output_discrepancy(p, q) + relation_gaps(wanted, found, relation).sum())

    return one


VARIANTS = {
    "as it is": (True, True, True, "crm"),
    "the spatial relation map of ZAQ's code": (True, True, True, "scrm"),
    "the teacher's graph kept, and the images'": (True, True, False, "crm"),
    "contiguous tensors": (True, False, True, "crm"),
    "torch's learnable quantizers": (False, True, True, "crm"),
    "the last three": (False, False, False, "crm"),
    "all four: the plain way": (False, False, False, "scrm"),
}


def main() -> None:
    torch.set_num_threads(2)
    calls = {name: steps(*variant) for name, variant in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(REPEATS + 1):
        for name, call in calls.items():  # in turn, so that what else the machine does falls on all
            start = time.perf_counter()
            call()
            if i:
                seconds[name].append(time.perf_counter() - start)
    best = statistics.median(seconds["as it is"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {1 / median:.2f} | {median / best:.2f} |", flush=True)


if __name__ == "__main__":
    main()
