"""Convolutions that remember less compute the same, forwards and backwards, and remember less."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from zoo import traced

from zaq.ir.light import conv2d
from zaq.ir.taps import with_taps


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("groups", "rest"), [(1, ()), (1, ([2, 1],)), (1, ([2, 2], [1, 0], [2, 1])), (4, ([1, 1], [1, 1], [1, 1], 4))]
)
def test_gradients_are_the_same_to_the_bit(layout: torch.memory_format, groups: int, rest: tuple[object, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=layout)
    weight, bias = torch.randn(12, 8 // groups, 3, 3), torch.randn(12)
    found = []
    for run in (conv2d, torch.ops.aten.conv2d.default):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = run(leaf, weight, bias, *rest)
        y.square().sum().backward()
        found.append((y, leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_that_are_learned_have_their_gradient() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    conv2d(torch.randn(2, 3, 8, 8), weight).sum().backward()
    assert weight.grad is not None and bool(weight.grad.any())


def test_inputs_are_not_kept() -> None:
    def kept(convolution: Any) -> int:
        sizes = dict[int, int]()

        def note(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        weight = torch.randn(3, 3, 3, 3)
        with saved_tensors_hooks(note, lambda t: t):
            x = torch.randn(2, 3, 8, 8, requires_grad=True)
            for _ in range(3):
                x = nn.functional.hardtanh(convolution(x, weight, None, [1, 1], [1, 1]))
        return sum(sizes.values()) // x.numel() // x.element_size()

    assert (kept(conv2d), kept(torch.ops.aten.conv2d.default)) == (3, 6)


def test_networks_with_taps_have_such() -> None:
    targets = [n.target for n in with_taps(traced("residual"), []).graph.nodes]
    assert conv2d in targets and torch.ops.aten.conv2d.default not in targets
