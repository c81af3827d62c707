"""ACIQ: where to clip, in closed form (Banner, Nahshan, Soudry; NeurIPS 2019).

Clipping at alpha loses what lies beyond and gains finer steps within; with M bits over [-alpha, alpha],

    Laplace(b):    MSE(alpha) = 2 b^2 e^(-alpha/b) + alpha^2 / (3 4^M)
    Gauss(sigma):  MSE(alpha) = (sigma^2 + alpha^2) (1 - erf(alpha / (sigma sqrt 2)))
                                - sqrt(2/pi) alpha sigma e^(-alpha^2 / (2 sigma^2)) + alpha^2 / (3 4^M)
"""

import math

import torch
from torch import Tensor

__all__ = ["allocate_bits", "alpha_gauss", "alpha_laplace", "clip_range"]


def alpha_laplace(bits: int) -> float:
    """alpha / b with the least MSE: the derivative's root, x e^x = 3 4^M, which is Lambert's W (by Newton's method)."""
    target = 3 * math.pow(4, bits)
    x = math.log(target)
    for _ in range(50):
        x -= (x - target * math.exp(-x)) / (1 + x)
    return x


def alpha_gauss(bits: int) -> float:
    """alpha / sigma with the least MSE: the root of 2x erfc(x/sqrt 2) - 2 sqrt(2/pi) e^(-x^2/2) + 2x / (3 4^M), by
    bisection.
    """

    def derivative(x: float) -> float:
        return (
            2 * x * math.erfc(x / math.sqrt(2))
            - 2 * math.sqrt(2 / math.pi) * math.exp(-x * x / 2)
            + 2 * x / (3 * math.pow(4, bits))
        )

    low, high = 0.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if derivative(middle) > 0 else (middle, high)
    return high


def clip_range(
    mean: float,
    deviation: float,
    bits: int,
    low: float,
    high: float,
    distribution: str = "laplace",
    signed: bool = False,
) -> tuple[float, float]:
    """The part of [low, high] to quantize. `deviation`: mean |x - mean| for laplace, the standard deviation for gauss.

    Where nothing lies below zero (after ReLU) half the distribution takes all the steps, as if it had one bit more; not
    on a `signed` grid, half of whose steps lie below zero all the same.
    """
    alpha_of = {"laplace": alpha_laplace, "gauss": alpha_gauss}[distribution]
    if low >= 0:
        return 0.0, min(high, max(mean, 0.0) + deviation * alpha_of(bits if signed else bits + 1))
    alpha = deviation * alpha_of(bits)
    start = max(low, mean - alpha)
    return start, min(high, start + 2 * alpha)


def allocate_bits(deviation: Tensor, bits: int, least: int = 1, most: int = 8) -> Tensor:
    """Bits for each channel, (C,) int64, whose mean is `bits`: the number of steps grows with deviation^(2/3) (ACIQ,
    eq. 11).

    Bits are whole; what rounding leaves over goes to the channels that it robbed most.
    """
    share = deviation.cpu().double().clamp(min=1e-12) ** (2 / 3)
    budget = bits * len(share)
    scale = 2.0**bits * len(share) / share.sum()
    for _ in range(20):  # a channel has `least` to `most` bits: scale until the mean fits
        exact = torch.log2(scale * share).clamp(least, most)
        scale = scale * 2.0 ** ((budget - exact.sum()) / len(share))
    found = exact.floor()
    order = torch.argsort(exact - found, descending=True)
    found[order[: max(int(budget - found.sum()), 0)]] += 1
    return found.clamp(least, most).long()
