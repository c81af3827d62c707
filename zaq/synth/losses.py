"""The losses of the data-free game, each with its equation."""

import torch
from torch import Tensor
from torch.nn import functional as F

from zaq.passes.fold import BatchNormStats

__all__ = ["RELATIONS", "activation_loss", "batch_norm_loss", "crm", "gram", "output_discrepancy", "relation_gaps", "scrm"]

SCRM_GAMMA = 0.1


def output_discrepancy(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """D_o = E ||P(x) - Q(x)||_1 (ZAQ, eq. 3): summed over the classes or channels, averaged over all else.

    p, q: the outputs of teacher and student, each (N, K, ...); the mean over several outputs.
    """
    return torch.stack([(a - b).abs().flatten(2).mean(2).sum(1).mean() if a.dim() > 2 else (a - b).abs().sum(1).mean()
                        for a, b in zip(p, q, strict=True)]).mean()  # fmt: skip


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
    rows = feature.movedim(1, -1).flatten(0, -2)  # (N H W, C): a view in channels_last
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


def batch_norm_loss(features: list[Tensor], stats: list[BatchNormStats]) -> Tensor:
    """How far a batch's statistics are from those the teacher was trained on, in units of each channel's deviation:

        sum over layers, mean over channels, of ((mean - beta) / |gamma|)^2 + (std / |gamma| - 1)^2

    (ZeroQ, eq. 3, on the folded network, where batch norm's output has mean beta and deviation |gamma|.)
    """
    losses = []
    for feature, stat in zip(features, stats, strict=True):
        dims = [0, *range(2, feature.dim())]
        unit = stat.std.clamp(min=0.05 * float(stat.std.max()) + 1e-6)  # a dead channel has no unit of its own
        mean, std = feature.mean(dims), (feature.var(dims, unbiased=False) + 1e-8).sqrt()
        losses.append((((mean - stat.mean) / unit) ** 2 + ((std - stat.std) / unit) ** 2).mean())
    return torch.stack(losses).sum()
