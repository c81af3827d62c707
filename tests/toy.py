"""A task and a network small enough to train in a test: gratings of ten orientations,
so that accuracy means something."""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq.config.card import Card

CARD = Card(input=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, classes=10)


def gratings(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n images (n, 3, 16, 16), normalised, and their labels: the orientation, under any phase,
    colour and some noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=g)
    angle = labels * math.pi / 10 + 0.05 * torch.randn(n, generator=g)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    phase, pitch = (torch.rand(n, 1, 1, generator=g) for _ in range(2))
    wave = torch.sin(
        (x * angle.cos().view(-1, 1, 1) + y * angle.sin().view(-1, 1, 1)) * (0.9 + 0.5 * pitch) + 6.3 * phase
    )
    color = 0.3 + 0.7 * torch.rand(n, 3, 1, 1, generator=g)
    pixels = (0.5 + 0.4 * wave[:, None] * color + 0.08 * torch.randn(n, 3, 16, 16, generator=g)).clamp(0, 1)
    return (pixels - 0.5) / 0.25, labels


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.b(self.a(x)))
        return self.fc(F.adaptive_avg_pool2d(self.down(x), 1).flatten(1))


@functools.lru_cache
def _trained() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for step in range(200):
            x, y = gratings(64, 1000 + step)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.state_dict()


def trained() -> Net:
    """The network, trained for a few seconds once a process; about 99 % on `gratings`."""
    net = Net()
    net.load_state_dict(_trained())
    return net.eval()


def unequal() -> Net:
    """The same function with channels of the first block scaled by 1/30 to 30, as depthwise networks end up."""
    net = trained()
    s = torch.logspace(-1.5, 1.5, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        net.a[1].weight.mul_(s)  # type: ignore[union-attr,operator]
        net.a[1].bias.mul_(s)  # type: ignore[union-attr,operator]
        net.b[0].weight.div_(s.view(1, -1, 1, 1))  # type: ignore[union-attr,operator]
    return net


class SharedHead(nn.Module):
    """Two maps that one 1x1 convolution reads, as in FPN and RetinaNet; the second is wide and lies far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.far = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.near(x)), self.head(self.far(x))


def shared_head() -> SharedHead:
    """The network with statistics from `gratings`; channels of its second map are high enough to be absorbed, and one
    of its first is switched off at a constant."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = SharedHead()
        norms = net.near[1], net.far[1]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.3, 0.8)  # type: ignore[arg-type]
        nn.init.uniform_(norms[0].bias, -1.0, 1.0)  # type: ignore[arg-type]
        nn.init.uniform_(norms[1].bias, 2.0, 5.0)  # type: ignore[arg-type]
        norms[0].weight[0], norms[0].bias[0] = 0.0, 3.0  # type: ignore[index,operator]
    return filled(net)


def filled(net: nn.Module, batches: int = 8) -> Any:
    """The same network in eval mode, its batch norms' statistics being those of `gratings` run through it."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # type: ignore[assignment]  # the mean of all batches
    with torch.no_grad():
        for seed in range(batches):
            net.train()(gratings(64, seed)[0])
    return net.eval()


class Offsets(nn.Module):
    """A padded layer, then two of one pixel, behind ReLU: offsets of the first two can move on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.last, self.fc = nn.Conv2d(16, 12, 1), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.last(self.point(self.stem(x)))).mean((2, 3)))


def offsets() -> Offsets:
    """The network with statistics from `gratings`, half of whose channels lie far above zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = Offsets()
        for norm in (net.stem[1], net.point[1]):
            nn.init.uniform_(norm.weight, 0.3, 0.6)  # type: ignore[arg-type]
            norm.bias[:8].uniform_(3.0, 6.0)  # type: ignore[index,operator]
            norm.bias[8:].uniform_(-0.5, 0.5)  # type: ignore[index,operator]
    return filled(net)
