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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq.compute.processes import uniform
from zaq.config.constants import Amount, Count, OneOrMore, Positive, Share
from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.engine.store import in_parts
from zaq.ir.nodes import input_node, output_nodes
from zaq.quant.alike import channel_dim, spreads
from zaq.quant.edges import HIGH
from zaq.quant.fake_quantize import FakeQuantize
from zaq.quant.rounding import LearnedRounding, into_cells
from zaq.quant.student import Student
from zaq.stages.blocks import Block, between, blocks
from zaq.stages.training import StepAdam, cosine, rate
from zaq.stats.bias import correct_empirically

__all__ = ["Reconstruct"]


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Stage):
    """Learn every block of a calibrated student for `steps` steps. Constants are for blocks whose output has variance
    1.
    """

    name: str = "reconstruct"
    steps: Count = 100  # for each block
    batch: OneOrMore = 32
    drop: Share = 0.5  # QDrop's probability
    lr_rounding: Amount = 1e-2  # Adam, of V (AdaRound: 1e-2, BRECQ 1e-3 over 20,000 steps), or so much that ...
    travel: Amount = 3.0  # ... V can move this far in the steps there are
    lr_scale: Amount = (
        1e-1  # Adam, in steps of each grid (less in proportion where batches are smaller), or so little ...
    )
    travel_scale: Amount = 5.0  # ... that an end of the range moves no farther than this
    lr_bias: Amount = 1e-4
    weight: Amount = 0.1  # lambda (BRECQ: 0.01, Genie-M: 1)
    warm_up: Share = 0.2  # part of the steps before h is pushed to 0 or 1
    beta: tuple[Positive, Positive] = (20.0, 2.0)
    correct: bool = True  # a block's biases once it is learned

    cost: ClassVar[float] = 0.5  # of one block

    def applies(self, state: State) -> bool:
        """At 8 bits there is nothing in a block to learn."""
        placed = state.student.placement
        return self.steps > 0 and any(q.bits < HIGH for q in (*placed.weights.values(), *placed.activations.values()))

    def length(self, state: State) -> int:
        return self.steps * len(blocks(state.task.teacher, state.student.placement.activations))

    def judge(self, state: State) -> Callable[[], float] | None:
        return state.judge

    def start(self, state: State, journal: Journal) -> Loop:
        assert state.images is not None
        return _Blocks(self, state, state.images)


class _Blocks(Loop):
    """Block after block: opened at its first step, closed after its last. Gone back to is the last one closed."""

    def __init__(self, stage: Reconstruct, state: State, images: Tensor) -> None:
        super().__init__(lambda i: None)
        self.stage, self.task, self.whole, self.steps = stage, state.task, state.student, stage.steps
        self.blocks = blocks(self.task.teacher, self.whole.placement.activations)
        self.source, self.at = _Source(state, images), -1

    def step(self, i: int, of: int) -> dict[str, float]:
        stage, done = self.stage, i % self.steps
        if self.at != i // self.steps:
            self._open(i // self.steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.slower * (cosine(done / self.steps) if group is not self.first else 1.0)
        index = torch.randint(len(self.source.images), (min(stage.batch, self.task.batch),))
        (exact, noisy), wanted = self.source.batch(index)
        x = torch.where(uniform(exact) < stage.drop, exact, noisy) if stage.drop else noisy
        outputs = zip(self.network(x), wanted, self.weights, strict=True)
        loss = torch.stack([_mean(w, (q - y).pow(2)) for q, y, w in outputs]).sum()
        self.task.work.step(self.optimizer, loss + self._push(done / self.steps))
        value = float(loss.detach())
        if done + 1 == self.steps and math.isfinite(value):  # else the runner puts the block back
            self._close()
        return {"loss": value}

    @property
    def resumable(self) -> bool:
        return self.at < 0  # not while a block is open

    def chapter(self, i: int) -> int:
        return i // self.steps

    def save(self) -> Any:
        """The student as it was when the last block was closed: what an open block has learned is not in it."""
        return self.closed if self.at >= 0 else self.whole.snapshot()

    def restore(self, saved: Any) -> None:
        if self.at >= 0:
            self._put_back()
        self.whole.restore(saved)
        self.source.forget()

    def finish(self) -> None:
        if self.at >= 0:  # broken off
            self._put_back()

    def _open(self, at: int) -> None:
        """Begin to learn a block (with the steps that are left,
        where it was put back after a loss that was no number)."""
        self.closed, self.block = self.whole.snapshot(), self.blocks[at]
        self.student = between(self.whole.module, self.block)
        self.roundings = _roundings(self.whole, self.student)
        self.at = at  # from here on there is something to put back, if Ctrl-C comes
        for path, rounding, _ in self.roundings:
            self.student.set_submodule(path, rounding)
        self.network = self.task.work.network(self.student)
        self.optimizer = self._optimizer()
        self.first = self.optimizer.param_groups[0]
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self._drop(0.0)  # the blocks before this one have learned, and round all that they write
        self.source.enter(self.block)
        self._drop(self.stage.drop)
        task, ends = self.task, {n.name for n in output_nodes(self.task.teacher)}
        exits = zip(self.block.exits, self.source.wanted, strict=True)
        self.weights = [_weight(y, name in ends, task.batch, task.device) for name, y in exits]

    def _drop(self, part: float) -> None:
        """Let a part of the values pass every quantizer unrounded (QDrop), but where a range is guaranteed."""
        for quantizer in self.whole.placement.activations.values():
            quantizer.drop = 0.0 if quantizer.guaranteed else part

    def _close(self) -> None:
        """Keep what the block has learned, and give its biases back what its means, now rounded, are off by."""
        for _, rounding, weight in self.roundings:
            into_cells(rounding.quantizer, weight.data, rounding.codes())
        self._put_back()
        if self.stage.correct:
            some = (x[: self.task.few] for x in self.source.pair)
            correct_empirically(between(self.task.teacher, self.block), self.student, *some)
        self.source.advance(self.block, self.student)

    def _put_back(self) -> None:
        """Put the quantizers back into the place of what was learning."""
        self._drop(0.0)
        for path, rounding, _ in self.roundings:
            self.student.set_submodule(path, rounding.quantizer)
        self.at = -1

    def _push(self, done: float) -> Tensor:
        """lambda sum (1 - |2 h(V) - 1|^beta), after a warm-up, with a beta that falls."""
        stage = self.stage
        if done < stage.warm_up or not self.roundings:
            return torch.zeros((), device=self.task.device)
        start, end = stage.beta
        beta = start + (end - start) * (done - stage.warm_up) / (1 - stage.warm_up)
        return stage.weight * torch.stack([r.regularization(beta) for _, r, _ in self.roundings]).sum()

    def _optimizer(self) -> StepAdam:
        """Over what a block holds: its roundings first, at a constant rate; then scales, in steps of their grid;
        biases.
        """
        stage, student, roundings = self.stage, self.student, [r for _, r, _ in self.roundings]
        lr_scale = stage.lr_scale * min(stage.batch, self.task.batch) / stage.batch
        quantizers = [r.quantizer for r in roundings] + [m for m in student.modules() if isinstance(m, FakeQuantize)]
        units: dict[nn.Parameter, Tensor] = {}
        for q in quantizers:
            q.scale.requires_grad_(not q.guaranteed)
            if not q.guaranteed:
                units[q.scale] = q.scale.detach() / q.quant_max  # type: ignore[index]
        weights = {id(self.whole.weight(name)) for name in self.whole.placement.weights}
        known = weights | {id(p) for p in units} | {id(r.v) for r in roundings} | {id(q.scale) for q in quantizers}
        slow = rate(stage.travel_scale, self.steps / 2, lr_scale)  # half: the cosine's mean
        return StepAdam(
            [
                {"params": [r.v for r in roundings], "lr": max(stage.lr_rounding, stage.travel / self.steps)},
                {"params": list(units), "lr": slow},
                {"params": [p for p in student.parameters() if id(p) not in known], "lr": stage.lr_bias},
            ],
            units,
        )


class _Source:
    """What enters a block in teacher and student, of all images, and what should leave it."""

    def __init__(self, state: State, images: Tensor) -> None:
        self.task, self.whole, self.store, self.images = state.task, state.student, state.store, images
        self.start = input_node(self.task.teacher).name
        self.at, self.pair = self.start, (images, images)  # the tensor that `pair` has of both, (exact, noisy)
        self.wanted: list[Tensor] = []

    def forget(self) -> None:
        """Find out anew what enters the next block: the student has been put back."""
        self.at, self.pair, self.wanted = self.start, (self.images, self.images), []

    def batch(self, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Some rows, by number: (exact, noisy), and what should leave the block."""
        return tuple([x[index].to(self.task.device) for x in some] for some in (self.pair, self.wanted))  # type: ignore[return-value]

    @torch.no_grad()
    def enter(self, block: Block) -> None:
        """Go to where a block begins, if it is not where the last one ended, and find what should leave it."""
        if self.at != block.entry:
            way = Block(self.at, (block.entry,), ())
            exact, noisy = (
                self._run(between(gm, way), x)[0]
                for gm, x in zip((self.task.teacher, self.whole.module), self.pair, strict=True)
            )
            self.at, self.pair = block.entry, (exact, noisy)
        self.wanted = self._run(between(self.task.teacher, block), self.pair[0])

    @torch.no_grad()
    def advance(self, block: Block, student: GraphModule) -> None:
        """Go on to where a block ends, with what it has learned."""
        exact, noisy = self.wanted[0], self.pair[1]
        self.pair, self.wanted = (exact, noisy), []
        self.at, self.pair = block.exits[0], (exact, self._run(student, noisy)[0])

    def _run(self, gm: GraphModule, x: Tensor) -> list[Tensor]:
        network, device = self.task.work.network(gm), self.task.device
        return self.store.gather_each((network(part.to(device)) for part in x.split(self.task.batch)), len(x))


def _mean(weight: float | Tensor, errors: Tensor) -> Tensor:
    return weight * errors.mean() if isinstance(weight, float) else (weight * errors).mean()


def _weight(wanted: Tensor, leaves: bool, batch: int, device: torch.device) -> float | Tensor:
    """What squared errors of an exit count: channels over its variance; or over each channel's own, broadcast to it,
    where it leaves the graph. Rows (N, K) are a classifier's, whose entries are alike."""
    if not leaves or wanted.dim() == 2:
        return wanted.shape[1] / float(_variance(wanted, None, batch).clamp(min=1e-12))
    dim = channel_dim(wanted)
    deviations = spreads(_variance(wanted, dim, batch).sqrt())
    weight = wanted.shape[1] / deviations.square().view([-1 if d == dim else 1 for d in range(wanted.dim())])
    return weight.to(device)


def _variance(x: Tensor, dim: int | None, batch: int) -> Tensor:
    """The variance of a tensor, or of each channel along `dim`, () or (C,), from those of its batches."""
    others = [d for d in range(x.dim()) if d != dim]
    found = [torch.var_mean(part, others, correction=0) for part in in_parts(x, batch)]
    variances, means = (torch.stack(f).cpu().double() for f in zip(*found, strict=True))
    sizes = torch.tensor([len(part) for part in x.split(batch)]).double() / len(x)
    mean = torch.tensordot(sizes, means, 1)
    of_all: Tensor = torch.tensordot(sizes, variances + (means - mean).square(), 1)
    return of_all.float()


def _roundings(whole: Student, student: GraphModule) -> list[tuple[str, LearnedRounding, Tensor]]:
    """A rounding that is learned for the quantizer of each of a block's weights; (path, rounding, weight).

    Weights of 8 bits stay as they are: so small a step leaves nothing to learn.
    """
    found = []
    for name, quantizer in whole.placement.weights.items():
        path = next((p for p, m in student.named_modules() if m is quantizer), None)
        if path is not None and quantizer.bits < HIGH:
            found.append((path, LearnedRounding(quantizer, whole.weight(name)), whole.weight(name)))
    return found
