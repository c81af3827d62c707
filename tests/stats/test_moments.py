"""Clipped normal distributions against draws, and statistics carried through graphs against what the graphs do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import CARD, SHAPE, ZOO, images, traced

from zaq.ir.capture import trace
from zaq.ir.nodes import output_nodes
from zaq.ir.ops import LINEARS
from zaq.ir.taps import with_taps
from zaq.passes.fold import fold
from zaq.stats.moments import ALIKE, Clipped, moments


def integral(mu: float, sigma: float, low: float, high: float) -> tuple[float, float]:
    """Mean and variance of clip(N(mu, sigma^2)) by summing over a fine grid."""
    x = torch.linspace(mu - 12 * sigma, mu + 12 * sigma, 400001, dtype=torch.double)
    p = torch.exp(-(((x - mu) / sigma) ** 2) / 2)
    p, y = p / p.sum(), x.clamp(low, high)
    mean = (p * y).sum()
    return float(mean), float((p * (y - mean) ** 2).sum())


@settings(deadline=None, max_examples=50)
@given(st.floats(-5, 5), st.floats(0.05, 4), st.floats(-3, 3), st.floats(0.1, 8))
def test_moments_of_a_clipped_normal(mu: float, sigma: float, low: float, width: float) -> None:
    for ends in ((low, low + width), (0.0, torch.inf), (-torch.inf, low)):
        clipped = Clipped.normal(torch.tensor([mu]), torch.tensor([sigma])).clip(*map(torch.tensor, ends))
        mean, variance = integral(mu, sigma, *ends)
        assert float(clipped.mean) == pytest.approx(mean, abs=1e-4)
        assert float(clipped.variance) == pytest.approx(variance, abs=1e-3 * sigma**2)


def test_relu_is_the_papers_formula() -> None:
    """gamma phi(-beta / gamma) + beta (1 - Phi(-beta / gamma))   (DFQ, eq. 19)"""
    beta, gamma = torch.randn(50).double(), torch.rand(50).double() + 0.1
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = gamma * normal.log_prob(-beta / gamma).exp() + beta * (1 - normal.cdf(-beta / gamma))
    found = Clipped.normal(beta, gamma).clip(torch.tensor(0.0), torch.tensor(torch.inf)).mean
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


MU, SIGMA = torch.linspace(-2, 2, 9).double(), torch.linspace(0.5, 2, 9).double()
POOLINGS = {
    "max": (nn.MaxPool2d(2), 0.0),
    "max of 9, over the edge": (nn.MaxPool2d(3, 2, 1), 0.0),
    "max, dilated": (nn.MaxPool2d(2, 2, dilation=2), 0.0),
    "max, unclipped": (nn.MaxPool2d(2), -torch.inf),
    "average": (nn.AvgPool2d(2), 0.0),
    "average of what is there": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 0.0),
    "average with zeros": (nn.AvgPool2d(3, 2, 1), 0.0),
    "average over 3": (nn.AvgPool2d(2, divisor_override=3), 0.0),
    "average, unclipped": (nn.AvgPool2d(2), -torch.inf),
    "adaptive": (nn.AdaptiveAvgPool2d(3), 0.0),
    "global": (nn.AdaptiveAvgPool2d(1), 0.0),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_moments_through_a_pooling_are_those_of_draws(name: str) -> None:
    """Values of a clipped normal distribution, pooled by torch itself: independent ones for the largest, for the
    average
    such as have a part in common.
    """
    (pooling, low), g = POOLINGS[name], torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.ReLU() if low == 0 else nn.Identity(), pooling)
    with torch.no_grad():
        net[1].weight.copy_(SIGMA)  # type: ignore[union-attr,operator]
        net[1].bias.copy_(MU)  # type: ignore[union-attr,operator]
    folded, _ = fold(trace(net.eval(), torch.zeros(2, 3, 8, 8)))
    found = moments(folded, CARD)[output_nodes(folded)[0].name]
    own, common = (torch.randn(4000, 9, n, n, generator=g, dtype=torch.double) for n in (8, 1))
    part = 0.0 if "max" in name else ALIKE
    x = (1 - part) ** 0.5 * own + part**0.5 * common
    drawn = pooling((x * SIGMA.view(-1, 1, 1) + MU.view(-1, 1, 1)).clamp(min=low))
    close = {"rtol": 0.0, "atol": 0.03}  # in units of sigma
    torch.testing.assert_close(found.mean / SIGMA, drawn.mean((0, 2, 3)) / SIGMA, **close)
    deviation = drawn.transpose(0, 1).flatten(1).std(1)
    close["atol"] = 0.07 if low == 0 else 0.03  # clipped values have a little less in common
    torch.testing.assert_close(found.variance.sqrt() / SIGMA, deviation / SIGMA, **close)


def test_zeros_from_a_padding_lie_within_what_an_average_reaches() -> None:
    """One value of a window of nine, from a channel between 3 and 4 and from one between -4 and -3."""
    ends = torch.tensor([3.0, -4.0]), torch.tensor([4.0, -3.0])
    found = Clipped.normal(torch.tensor([3.5, -3.5]), torch.tensor([0.1, 0.1])).clip(*ends).average(1, 9)
    torch.testing.assert_close(found.mean.float(), torch.tensor([3.5, -3.5]) / 9, atol=1e-4, rtol=0)


def test_a_range_is_so_many_deviations_but_for_the_ends() -> None:
    known = Clipped.normal(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 1.0])).clip(
        torch.tensor(0.0), torch.tensor(6.0)
    )
    low, high = known.reach(2.0)
    assert low.tolist() == [0.0, 3.0] and high.tolist() == [5.0, 6.0]


class Sum(nn.Module):
    """Two rectified maps, added; the sum has two channels of zeros before and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.ReLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.a(x) + self.b(x), (0, 0, 0, 0, 2, 1))


def test_moments_of_a_sum_and_of_channels_of_zeros() -> None:
    net = Sum()
    with torch.no_grad():
        for part, mu in ((net.a, MU), (net.b, 1.0 + MU.flip(0))):
            part[1].weight.copy_(SIGMA)  # type: ignore[operator]
            part[1].bias.copy_(mu)  # type: ignore[operator]
    folded, _ = fold(trace(net.eval(), images(2)))
    known = moments(folded, CARD)
    total, padded = known["add"], known[output_nodes(folded)[0].name]
    one, other = torch.randn(2, 100000, 9, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    drawn = (one * SIGMA + MU).relu() + (other * SIGMA + 1.0 + MU.flip(0)).relu()
    torch.testing.assert_close(total.mean / SIGMA, drawn.mean(0) / SIGMA, atol=0.12, rtol=0.0)  # of a normal's clipped
    torch.testing.assert_close(total.variance.sqrt() / SIGMA, drawn.std(0) / SIGMA, atol=0.15, rtol=0.0)
    assert (total.low == 0).all()
    for low, high in (padded.reach(6.0), (padded.mean, padded.variance)):
        assert all(float(v[[0, 1, -1]].abs().max()) < 1e-9 for v in (low, high))
    torch.testing.assert_close(padded.mean[2:-1], total.mean)


def test_rows_of_a_map_have_no_channels() -> None:
    """A linear layer over the columns of a map, of which there are as many as channels: nothing is known of them."""
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Linear(16, 4)).eval()
    folded, _ = fold(trace(net, images(2)))
    (layer,) = [n for n in folded.graph.nodes if n.target in LINEARS]
    known = moments(folded, CARD)
    assert "conv2d" in known and not {layer.name, layer.all_input_nodes[0].name} & set(known)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"transposed", "signed", "shared_weight"}))
def test_every_tensor_of_a_batch_normed_net_is_known(name: str) -> None:
    folded, _ = fold(traced(name))
    known = moments(folded, CARD)
    nodes = [n for n in folded.graph.nodes if n.name in known]
    assert nodes and all(torch.isfinite(k.mean).all() and (k.variance >= 0).all() for k in known.values())
    for node, value in zip(nodes, with_taps(folded, [n.name for n in nodes])(images(2))[1], strict=True):
        assert len(known[node.name].mu) == value.shape[1], node.name


def test_a_layer_without_batch_norm_adds_up_its_inputs() -> None:
    """On independent inputs of the assumed distribution, the carried mean and deviation are those that come out."""
    folded, _ = fold(traced("no_batch_norm"))
    known = moments(folded, CARD)
    x = torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    with torch.no_grad():
        found = with_taps(folded, ["conv2d"])(x)[1][0]
    torch.testing.assert_close(found.mean((0, 2, 3)).double(), known["conv2d"].mean, atol=0.01, rtol=0.02)
    torch.testing.assert_close(found.std((0, 2, 3)).double(), known["conv2d"].variance.sqrt(), atol=0.01, rtol=0.02)
