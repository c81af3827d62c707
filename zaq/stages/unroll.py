"""Unrolled steps (Metz, Poole, Pfau, Sohl-Dickstein; ICLR 2017): what somebody who plays against one answers.

    theta^0 = theta,   theta^k+1 = theta^k - step of f(theta^k),   k < K

A generator that goes up f(theta^K) and not f(theta) sees what will be left of its images when they have been learned
from, through all K steps: d f_K / dG = df/dG + df/dtheta^K dtheta^K/dG.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from zaq.engine.work import Network, Work
from zaq.stages.training import StepAdam

__all__ = ["answered", "unrolled"]

Parameters = dict[str, Tensor]
TINY = 1e-12


def unrolled(
    loss: Callable[[Parameters], Tensor], start: Mapping[str, Tensor], rates: Mapping[str, Tensor], steps: int
) -> Parameters:
    """The parameters after `steps` steps down a loss of them, as a function of all that the loss depends on.

    A step moves each tensor by its rate, of its shape or broadcast to it, on the mean over its entries (root of the
    mean of squares): theta - rate g' / rms(g') with g' = rate g, which is what Adam's first step comes to, with a
    derivative.
    """
    now = {name: p.detach().requires_grad_() for name, p in start.items()}
    for _ in range(steps):
        found = torch.autograd.grad(loss(now), list(now.values()), create_graph=True, allow_unused=True)
        now = {n: p if g is None else p - _step(g, rates[n]) for (n, p), g in zip(now.items(), found, strict=True)}
    return now


def _step(gradient: Tensor, rate: Tensor) -> Tensor:
    slope = rate * gradient
    return rate * slope / (slope.square().mean() + TINY).sqrt()


def answered(
    graph: GraphModule, optimizer: StepAdam, loss: Callable[[Network], Tensor], steps: int, weights: bool, work: Work
) -> Network:
    """A student as it is after `steps` steps down a loss of it, with the gradient of that. Each step is as long as the
    optimizer's own; without `weights` what moves are ranges, gains and biases. Every process computes all of it.
    """

    def network(parameters: Parameters) -> Network:
        def run(x: Tensor) -> Any:
            with work.autocast():
                found = functional_call(graph, parameters, (x,))
            return pytree.tree_map_only(Tensor, Tensor.float, found)

        return run

    lengths = {
        id(p): torch.as_tensor(group["lr"]) * optimizer.units.get(p, 1.0)
        for group in optimizer.param_groups
        for p in group["params"]
        if weights or p.dim() < 2
    }
    moved = {name: p for name, p in graph.named_parameters() if id(p) in lengths}
    rates = {name: lengths[id(p)] for name, p in moved.items()}
    return network(unrolled(lambda parameters: loss(network(parameters)), moved, rates, steps))
