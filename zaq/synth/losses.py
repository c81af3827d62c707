"""The losses of the data-free game, each with its equation."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.compute.devices import CPU
from zaq.engine.snapshot import known
from zaq.passes.fold import BatchNormStats
from zaq.quant.alike import LEAST_SPREAD, channel_dim, spreads

__all__ = [
    "RELATIONS",
    "activation_loss",
    "batch_norm_loss",
    "batch_statistics_loss",
    "channel_moments",
    "crm",
    "gram",
    "jensen_shannon",
    "l2_prior",
    "orthogonal_loss",
    "output_discrepancy",
    "relation_gaps",
    "relative_discrepancy",
    "sample_statistics_loss",
    "scrm",
    "standard",
    "total_variation",
]

Moments = tuple[Tensor, Tensor]  # mean and variance of each channel, (C,) both
SCRM_GAMMA = 0.1
DEAD = 1e-3  # part of a layer's largest |gamma| below which a channel tells nothing of batch norm's input


@known
def output_discrepancy(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """D_o = E ||P(x) - Q(x)||_1 (ZAQ, eq. 3): summed over the classes, averaged over all else.

    p, q: the outputs of teacher and student, each (N, ...). But for a classifier's, one (N, K), whose entries are
    alike: each channel in units of its spread over the teacher's samples, times the mean of these units, so that boxes
    in pixels do not drown class scores beside them.
    """
    if len(p) == 1 and p[0].dim() == 2:
        return (p[0] - q[0]).abs().sum(1).mean()
    return relative_discrepancy(p, q) * torch.stack([_units(a).sum() for a in p]).mean()


@known
def relative_discrepancy(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """D_o in units of what the teacher's samples differ by from their mean, channel by channel; the mean over the
    channels of an output, and over outputs. What hardly varies beside others has no unit of its own."""
    floor = LEAST_SPREAD * max(float(_units(a).mean()) for a in p)
    return torch.stack([(_gaps(a, b) / _units(a).clamp(min=floor)).mean() for a, b in zip(p, q, strict=True)]).mean()


def _units(p: Tensor) -> Tensor:
    """What the samples of an output differ by from their mean, (C,), a channel each."""
    return spreads(_gaps(p, p.mean(0, keepdim=True)))


def _gaps(p: Tensor, q: Tensor) -> Tensor:
    """Mean |P(x) - Q(x)| of each channel of an output, (C,)."""
    return (p - q).abs().movedim(channel_dim(p), 0).flatten(1).mean(1)


def crm(feature: Tensor) -> Tensor:
    """Channel relation map (ZAQ, section 3.2): R_ij = <f_i, f_j> / (|f_i| |f_j|), f_i channel i over batch and space.

    (N, C, H, W) -> (C, C). Normalised after the product: the features themselves, and their gradient, stay as they lie.
    """
    products = _products(feature)
    inverse = products.diagonal().clamp(min=1e-12).rsqrt()
    return products * inverse[:, None] * inverse[None, :]


def gram(feature: Tensor) -> Tensor:
    """The Gram matrix, the paper's ablation of the CRM: <f_i, f_j> / (N H W). (N, C, H, W) -> (C, C)."""
    return _products(feature) / (feature.numel() / feature.shape[1])


def _products(feature: Tensor) -> Tensor:
    rows = _rows(feature)
    return rows.T @ rows


def scrm(feature: Tensor) -> Tensor:
    """What ZAQ's released code compares instead of the CRM: spatial and channel self-attention of each sample.

    (N, C, H, W) -> (N, 2C, HW). The spatial map is HW x HW per sample; costs accordingly.
    """
    x = F.normalize(feature, dim=1).flatten(2)  # (N, C, HW)
    spatial = SCRM_GAMMA * x @ torch.softmax(x.transpose(1, 2) @ x, -1).transpose(1, 2) + x
    energy = x @ x.transpose(1, 2)
    channel = SCRM_GAMMA * torch.softmax(energy.amax(-1, keepdim=True) - energy, -1) @ x + x
    return torch.cat([spatial, channel], 1)


RELATIONS = {"crm": crm, "gram": gram, "scrm": scrm}


def relation_gaps(p: list[Tensor], q: list[Tensor], relation: str = "crm") -> Tensor:
    """Per tapped layer, (1 / C^2) ||R_P - R_Q||_1 (ZAQ, eq. 5), as a mean over the map. -> (layers,)."""
    of = RELATIONS[relation]
    return torch.stack([(of(a) - of(b)).abs().mean() for a, b in zip(p, q, strict=True)])


def activation_loss(feature: Tensor) -> Tensor:
    """L_a = -(1 / M) sum_i ||h_i||_1 (ZAQ, eq. 8): real images excite the teacher's last feature map."""
    return -feature.abs().mean()


def channel_moments(feature: Tensor) -> Moments:
    """Mean and variance of each channel over batch and space: (N, C, ...) -> (C,), (C,).

    Two passes over rows that lie as they are in channels_last take two thirds of the time of torch's own variance.
    """
    moments: Moments = _OfChannels.apply(feature)  # type: ignore[no-untyped-call]
    return moments


class _OfChannels(torch.autograd.Function):
    """Keeps the feature alone for its gradient, where autograd would keep what it differs from its mean by as well."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> tuple[Tensor, Tensor]:
        rows = _rows(feature)
        mean = rows.mean(0)
        ctx.save_for_backward(feature, mean)
        return mean, (rows - mean).square_().mean(0)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        feature, mean = ctx.saved_tensors
        of_mean, of_variance = (g / (feature.numel() // len(mean)) for g in given)
        rows = (_rows(feature) - mean).mul_(2 * of_variance).add_(of_mean)
        gradient: Tensor = rows.view(len(feature), *feature.shape[2:], -1).movedim(-1, 1)
        return gradient


def _rows(feature: Tensor) -> Tensor:
    return feature.movedim(1, -1).flatten(0, -2)  # (N H W, C): a view in channels_last


def batch_norm_loss(moments: list[Moments], stats: list[BatchNormStats]) -> Tensor:
    """How far a batch's statistics are from those the teacher was trained on, in units of each channel's deviation:

        sum over layers, mean over channels, of ((mean - beta) / |gamma|)^2 + (std / |gamma| - 1)^2

    (ZeroQ, eq. 3, on the folded network, where batch norm's output has mean beta and deviation |gamma|.)
    moments: of the outputs of folded layers, see `channel_moments`.
    """
    losses = []
    for (mean, var), stat in zip(moments, stats, strict=True):
        unit = stat.std.clamp(min=0.05 * float(stat.std.max()) + 1e-6)  # a dead channel has no unit of its own
        std = (var + 1e-8).sqrt()
        losses.append((((mean - stat.mean) / unit) ** 2 + ((std - stat.std) / unit) ** 2).mean())
    return torch.stack(losses).sum()


def standard(channels: int, device: torch.device = CPU) -> BatchNormStats:
    """Mean 0 and deviation 1: what normalisation makes of images, for the statistics of the input itself."""
    zeros, ones = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    return BatchNormStats(zeros, ones, zeros, ones)


def _before(mean: Tensor, var: Tensor, stat: BatchNormStats) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of a folded layer's output y, (..., C), in the units of batch norm's input x = (y - beta) / gamma s +
    m.

    Returns (mean gap, variance, running variance, alive): the first up to gamma's sign, all 0 in channels whose gamma
    is.
    """
    alive = stat.std > DEAD * stat.std.max()
    gain = torch.where(alive, stat.running_std / stat.std.clamp(min=1e-30), 0.0)
    return gain * (mean - stat.mean), gain**2 * var, stat.running_std**2 * alive, alive


def sample_statistics_loss(features: list[Tensor], stats: list[BatchNormStats]) -> Tensor:
    """ZeroQ, eq. 3, as its code has it: sum over layers of ||mu(x) - mu_BN||^2 + ||sigma(x) - sigma_BN||^2

    of batch norm's input, mu and sigma over the pixels of one sample, summed over channels, averaged over the batch.
    features: outputs of folded layers, (N, C, H, W); where there is but one pixel, statistics are over the batch.
    """
    losses = []
    for feature, stat in zip(features, stats, strict=True):
        pixels = feature.flatten(2) if feature[0, 0].numel() > 1 else feature.flatten(1).T[None]  # (N or 1, C, pixels)
        gap, var, running_var, alive = _before(pixels.mean(2), pixels.var(2), stat)
        deviation = (var + 1e-6).sqrt() - running_var.sqrt()
        losses.append((gap**2 + alive * deviation**2).sum(1).mean())
    return torch.stack(losses).sum()


def batch_statistics_loss(moments: list[Moments], stats: list[BatchNormStats]) -> Tensor:
    """R_feature = sum over layers of ||mu(x) - mu_BN||_2 + ||sigma^2(x) - sigma^2_BN||_2 (DeepInversion, eq. 4).

    Statistics of batch norm's input over batch and pixels; moments: of the outputs of folded layers.
    """
    losses = []
    for (mean, variance), stat in zip(moments, stats, strict=True):
        gap, var, running_var, _ = _before(mean, variance, stat)
        losses.append(torch.linalg.vector_norm(gap) + torch.linalg.vector_norm(var - running_var))
    return torch.stack(losses).sum()


def total_variation(images: Tensor) -> Tensor:
    """R_TV (DeepInversion, eq. 3): the L2 norms of the differences to four neighbours, over the batch. (N, C, H, W)"""
    x = images
    neighbours = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., 1:, 1:] - x[..., :-1, :-1],
    )
    return torch.stack([torch.linalg.vector_norm(d) for d in neighbours]).sum()


def l2_prior(images: Tensor) -> Tensor:
    """R_l2 = ||x||_2 over the batch (DeepInversion, eq. 3)."""
    norm: Tensor = torch.linalg.vector_norm(images)
    return norm


def orthogonal_loss(weights: Iterable[Tensor]) -> Tensor:
    """||W W^T o (1 - I)||_F^2 of weights (rows, ...), summed: what the rows of each have in common, whatever their
    lengths (BigGAN, eq. 3). Its gradient is 4 (W W^T o (1 - I)) W; the released code adds half of that.
    """
    losses = []
    for weight in weights:
        products = weight.flatten(1) @ weight.flatten(1).T
        losses.append((products - products.diagonal().diag()).square().sum())
    return torch.stack(losses).sum()


def jensen_shannon(p: Tensor, q: Tensor, temperature: float = 3.0) -> Tensor:
    """JS(P, Q) = (KL(P || M) + KL(Q || M)) / 2, M = (P + Q) / 2, of the softmax of logits (N, K); from 0 to ln 2.

    DeepInversion's competition is 1 - JS (eq. 7): images on which teacher and student differ. T = 3 in the code, whose
    `kl_div` takes the arguments the other way round.
    """
    log_p, log_q = F.log_softmax(p / temperature, 1), F.log_softmax(q / temperature, 1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return torch.stack([F.kl_div(log_m, of, reduction="batchmean", log_target=True) for of in (log_p, log_q)]).mean()
