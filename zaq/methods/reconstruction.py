"""Block reconstruction: rounding and steps learned block by block, each from the quantized prefix to the teacher's
output.

    min over V, s_w, s_x, b of  E ||Q_k(x^) - P_k(x)||^2 + lambda sum (1 - |2 h(V) - 1|^beta)

x is what enters block k in the teacher, x^ what the blocks before it make of it in the student (BRECQ; Li et al. 2021).
Half of the values that enter or pass a quantizer are the exact ones, at random (QDrop; Wei et al. 2022); weight scales
move with the rounding (Genie-M; Jeon et al. 2023), activation scales as LSQ's. When a block is learned, its biases take
back what the means of its layers are still off by (DFQ; Nagel et al. 2019): the blocks behind it learn from what it
then writes, and steps as few as ours move no bias that far.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq.ir.nodes import attribute, input_node
from zaq.methods.job import Job, Stage
from zaq.methods.training import StepAdam, cosine, rate, step
from zaq.quant.edges import HIGH
from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.placement import make_room
from zaq.quant.rounding import LearnedRounding, into_cells
from zaq.stages.blocks import Block, between, blocks
from zaq.stats.bias import correct_empirically

__all__ = ["Reconstruction"]

CACHED = 2**30  # bytes of features kept at a time; more images are taken in pieces


@dataclass(frozen=True)
class Reconstruction:
    """Constants of the reconstruction, for blocks whose output has variance 1."""

    batch: int = 32
    drop: float = 0.5  # QDrop's probability
    lr_rounding: float = 1e-2  # Adam, of V (AdaRound: 1e-2, BRECQ 1e-3 over 20,000 steps), or so much that ...
    travel: float = 3.0  # ... V can move this far in the steps there are
    lr_scale: float = (
        1e-1  # Adam, in steps of each grid (in proportion to the batch where it is smaller), or so little that ...
    )
    travel_scale: float = 5.0  # ... an end of the range moves no farther than this
    lr_bias: float = 1e-4
    weight: float = 0.1  # lambda (BRECQ: 0.01, Genie-M: 1)
    warm_up: float = 0.2  # part of the steps before h is pushed to 0 or 1
    beta: tuple[float, float] = (20.0, 2.0)
    correct: bool = True  # a block's biases once it is learned

    def __call__(self, job: Job, images: Tensor, steps: int, stage: Stage) -> None:
        """Learn every block of a calibrated student for `steps` steps on images (N, C, H, W)."""
        parts = blocks(job.teacher, job.placement.activations)
        ticks = job.progress.track("reconstruct", steps * len(parts))
        source = _Source(job, images)
        for block in parts:
            self._learn(job, block, source, steps, ticks, stage)
        make_room(job.student)

    def _learn(self, job: Job, block: Block, source: "_Source", steps: int, ticks: Iterator[int], stage: Stage) -> None:
        student = between(job.student, block)
        with learned(job, student, self.drop) as roundings:
            optimizer = self._optimizer(job, student, roundings, steps)
            peaks = [group["lr"] for group in optimizer.param_groups]
            pieces = source.pieces(block)
            for piece in range(pieces):
                pair, wanted = source.piece(block, piece)
                weights = [y.shape[1] / float(y.var().clamp(min=1e-12)) for y in wanted]
                for i in range(steps * piece // pieces, steps * (piece + 1) // pieces):
                    next(ticks, None)
                    for group, peak in zip(optimizer.param_groups[1:], peaks[1:], strict=True):
                        group["lr"] = peak * cosine(i / steps)
                    index = torch.randint(len(pair[0]), (min(self.batch, job.batch),))
                    exact, noisy = (x[index] for x in pair)
                    x = torch.where(torch.rand_like(exact) < self.drop, exact, noisy) if self.drop else noisy
                    gaps = [
                        w * (q - y[index]).pow(2).mean() for q, y, w in zip(student(x), wanted, weights, strict=True)
                    ]
                    loss = torch.stack(gaps).sum()
                    job.log("reconstruct", stage.steps, loss=float(loss.detach()))
                    step(optimizer, loss + self._push(roundings, i / steps))
                    stage.steps += 1
        if self.correct:
            exact, noisy = (x[: job.few] for x in pair)
            correct_empirically(between(job.teacher, block), student, exact, noisy)
        source.advance(block, student)

    def _push(self, roundings: list[LearnedRounding], done: float) -> Tensor:
        """lambda sum (1 - |2 h(V) - 1|^beta), after a warm-up, with a beta that falls."""
        if done < self.warm_up or not roundings:
            return torch.zeros(())
        start, end = self.beta
        beta = start + (end - start) * (done - self.warm_up) / (1 - self.warm_up)
        return self.weight * torch.stack([r.regularization(beta) for r in roundings]).sum()

    def _optimizer(self, job: Job, student: GraphModule, roundings: list[LearnedRounding], steps: int) -> StepAdam:
        """Over what a block holds: its roundings first, at a constant rate; then scales, in steps of their grid;
        biases.
        """
        lr_scale = self.lr_scale * min(self.batch, job.batch) / self.batch
        quantizers = [r.quantizer for r in roundings] + [m for m in student.modules() if isinstance(m, FakeQuantize)]
        units: dict[nn.Parameter, Tensor] = {}
        for q in quantizers:
            q.scale.requires_grad_(not q.guaranteed)
            if not q.guaranteed:
                units[q.scale] = q.scale.detach() / q.quant_max  # type: ignore[index]
        weights = {id(attribute(job.student, name)) for name in job.placement.weights}
        known = weights | {id(p) for p in units} | {id(r.v) for r in roundings} | {id(q.scale) for q in quantizers}
        return StepAdam(
            [
                {"params": [r.v for r in roundings], "lr": max(self.lr_rounding, self.travel / steps)},
                {"params": list(units), "lr": rate(self.travel_scale, steps / 2, lr_scale)},  # half: the cosine's mean
                {"params": [p for p in student.parameters() if id(p) not in known], "lr": self.lr_bias},
            ],
            units,
        )


class _Source:
    """What enters a block in teacher and student, and what should leave it, for a piece of the images at a time."""

    def __init__(self, job: Job, images: Tensor) -> None:
        self.job, self.images = job, images
        self.start = input_node(job.teacher).name
        self.at, self.pair = self.start, (images, images)  # kept from block to block where all images fit

    def pieces(self, block: Block) -> int:
        """How many pieces the images are taken in, so that a block's features fit into `CACHED` bytes."""
        values = {n.name: n.meta["val"] for n in self.job.teacher.graph.nodes if n.name in (block.entry, *block.exits)}
        each = sum(4 * math.prod(v.shape[1:]) * (2 if name == block.entry else 1) for name, v in values.items())
        return max(math.ceil(int(each) * len(self.images) / CACHED), 1)

    @torch.no_grad()
    def piece(self, block: Block, number: int) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        """(exact, noisy) entries and the teacher's exits."""
        pair = self.pair
        if self.at != block.entry or self.pieces(block) > 1:
            way = Block(self.start, (block.entry,), ())
            images = self.images[number :: self.pieces(block)]
            pair = tuple(self._run(between(gm, way), images)[0] for gm in (self.job.teacher, self.job.student))  # type: ignore[assignment]
        wanted = self._run(between(self.job.teacher, block), pair[0])
        self.at, self.pair = (block.entry, pair) if self.pieces(block) == 1 else ("", (self.images[:0],) * 2)
        self.exact = wanted[0]
        return pair, wanted

    @torch.no_grad()
    def advance(self, block: Block, student: GraphModule) -> None:
        """Go on to where a block ends, with what it has learned."""
        if self.at == block.entry:
            self.at, self.pair = block.exits[0], (self.exact, self._run(student, self.pair[1])[0])

    def _run(self, gm: GraphModule, x: Tensor) -> list[Tensor]:
        found = [gm(part) for part in x.split(self.job.batch)]
        return [torch.cat(list(exit)) for exit in zip(*found, strict=True)]


@contextmanager
def learned(job: Job, student: GraphModule, drop: float) -> Iterator[list[LearnedRounding]]:
    """Inside, a block's weights are rounded as is being learned; afterwards they lie where nearest rounding does the
    same.

    Weights of 8 bits stay as they are: so small a step leaves nothing to learn.
    """
    placed = []
    for name, quantizer in job.placement.weights.items():
        path = next((p for p, m in student.named_modules() if m is quantizer), None)
        if path is not None and quantizer.bits < HIGH:
            placed.append(
                (path, LearnedRounding(quantizer, attribute(job.student, name)), attribute(job.student, name))
            )
            student.set_submodule(path, placed[-1][1])
    for quantizer in job.placement.activations.values():
        quantizer.drop = 0.0 if quantizer.guaranteed else drop
    try:
        yield [rounding for _, rounding, _ in placed]
    finally:
        for quantizer in job.placement.activations.values():
            quantizer.drop = 0.0
        for path, rounding, weight in placed:
            into_cells(rounding.quantizer, weight.data, rounding.codes())
            student.set_submodule(path, rounding.quantizer)
