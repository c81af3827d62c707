"""Eight Gaussians on a ring, the toy of Unrolled GAN (Metz et al. 2017): which of them a generator finds, by the number
of steps of the other player's answer that its gradient runs through.

    python benchmarks/ring.py --steps 25000                     # the paper's, some hours on a CPU
    python benchmarks/ring.py --steps 4000 --unroll 0 --unroll 5

A mode is found where a hundredth of the samples or more lie within three deviations of it.
"""

import math
import time

import click
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from zaq.stages.unroll import unrolled

MODES, RADIUS, SPREAD = 8, 2.0, 0.02
LATENT, WIDTH, BATCH, DRAWN = 256, 128, 512, 2048
LR_GENERATOR, LR_OTHER, BETAS = 1e-3, 1e-4, (0.5, 0.999)


@click.command()
@click.option("--steps", type=click.IntRange(1), default=25000, show_default=True)
@click.option("--unroll", type=click.IntRange(0), multiple=True, default=(0, 1, 5), show_default=True)
@click.option("--seed", default=0, show_default=True)
def ring(steps: int, unroll: tuple[int, ...], seed: int) -> None:
    """How many of eight modes are found, a line a number of unrolled steps."""
    click.echo("| K | modes found | samples near one | seconds |\n|---|---|---|---|")
    for k in unroll:
        started = time.monotonic()
        found, near = modes(play(steps, k, seed))
        click.echo(f"| {k} | {found} of {MODES} | {100 * near:.0f} % | {time.monotonic() - started:.0f} |")


def play(steps: int, unroll: int, seed: int) -> Tensor:
    """What the generator draws behind so many steps of both, (DRAWN, 2)."""
    torch.manual_seed(seed)
    generator, other = network(LATENT, 2), network(2, 1)
    up = torch.optim.Adam(generator.parameters(), LR_GENERATOR, BETAS)
    down = torch.optim.Adam(other.parameters(), LR_OTHER, BETAS)
    named: dict[str, Tensor] = dict(other.named_parameters())
    rates = {name: torch.tensor(LR_OTHER) for name in named}
    for _ in range(steps):
        real, drawn = samples(BATCH), generator(torch.randn(BATCH, LATENT))

        def loss(parameters: dict[str, Tensor], real: Tensor = real, drawn: Tensor = drawn) -> Tensor:
            right, wrong = (functional_call(other, parameters, (x,)) for x in (real, drawn))
            return F.softplus(-right).mean() + F.softplus(wrong).mean()

        up.zero_grad()
        (-loss(unrolled(loss, named, rates, unroll))).backward()
        up.step()
        down.zero_grad()
        loss(named, drawn=drawn.detach()).backward()
        down.step()
    with torch.no_grad():
        found: Tensor = generator(torch.randn(DRAWN, LATENT))
    return found


def network(i: int, o: int) -> nn.Sequential:
    """Two layers of 128, orthogonal with a gain of 1.4."""
    layers = [nn.Linear(i, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, o)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 1.4)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def centres() -> Tensor:
    """Of the modes, (MODES, 2)."""
    angle = 2 * math.pi * torch.arange(MODES) / MODES
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def samples(n: int) -> Tensor:
    """n points (n, 2) of the eight Gaussians."""
    return centres()[torch.randint(MODES, (n,))] + SPREAD * torch.randn(n, 2)


def modes(points: Tensor) -> tuple[int, float]:
    """How many modes have points (n, 2), and what part of the points is near one."""
    near = torch.cdist(points, centres()) < 3 * SPREAD
    return int((near.float().mean(0) > 0.01).sum()), float(near.any(1).float().mean())


if __name__ == "__main__":
    ring()
