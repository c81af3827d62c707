"""Small random CNNs out of the zoo's parts, and random choices of bits and grids for them, for hypothesis."""

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import with_history

from zaq.config.bits import ACTIVATION_GRIDS, PLACEMENTS, WEIGHT_GRIDS, QConfig
from zaq.config.targets import TARGETS

Shape = tuple[int, int, int]  # of one sample: C, H, W
MOST = 24  # channels


class Do(nn.Module):
    """A function as a module, with a name to print."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class Add(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Concat(nn.Module):
    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gate(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Net(nn.Module):
    """Parts in a row, and heads that all read the last."""

    def __init__(self, parts: list[nn.Module], heads: list[nn.Module]) -> None:
        super().__init__()
        self.parts, self.heads = nn.Sequential(*parts), nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.parts(x)
        outputs = [head(x) for head in self.heads]
        return outputs if len(outputs) > 1 else outputs[0]


def shape_after(part: nn.Module, shape: Shape) -> Shape:
    with torch.no_grad():
        channels, height, width = part.eval()(torch.zeros(1, *shape)).shape[1:]
    return channels, height, width


def function(draw: DrawFn, *functions: tuple[str, Callable[[Tensor], Tensor]]) -> nn.Module:
    return Do(*draw(st.sampled_from(functions)))


def activation(draw: DrawFn) -> nn.Module:
    kinds = (
        nn.ReLU,
        nn.ReLU,
        nn.ReLU6,
        nn.Hardtanh,
        lambda: nn.Hardtanh(-0.5, 2.0),
        nn.LeakyReLU,
        nn.Hardswish,
        nn.Identity,
    )
    return draw(st.sampled_from(kinds))()


def convolution(draw: DrawFn, shape: Shape, out: int = 0, same: bool = False, linear: bool = False) -> nn.Module:
    """Convolution, often a batch norm, an activation unless `linear`. `out` channels if given; `same` H and W."""
    channels, size = shape[0], min(shape[1:])
    groups = draw(st.sampled_from([g for g in (1, 1, 2, channels) if channels % g == 0 and out % g == 0]))
    out = out or groups * draw(st.integers(1, max(1, MOST // 2 // groups)))
    dilation = draw(st.sampled_from([1, 1, 1, 2]))
    kernel = draw(st.sampled_from([k for k in (1, 3, 3, 5) if dilation * (k - 1) < size]))
    most = dilation * (kernel - 1) // 2
    padding = most if same else draw(st.integers(0, most))
    stride = 1 if same else draw(st.sampled_from([1, 1, 2]))
    norm = draw(st.booleans())
    layer = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=not norm or draw(st.booleans()))
    after = ([nn.BatchNorm2d(out)] if norm else []) + ([] if linear else [activation(draw)])
    return nn.Sequential(layer, *after)


def residual(draw: DrawFn, shape: Shape) -> nn.Module:
    channels = shape[0]
    kind = draw(st.sampled_from(["identity", "identity", "1x1", "A", "twice"]))
    if kind == "twice":
        return Add(nn.Identity(), nn.Identity())
    if kind == "identity" or min(shape[1:]) < 4:
        body, shortcut = [convolution(draw, shape, channels, same=True, linear=draw(st.booleans()))], nn.Identity()
    else:
        more = draw(st.integers(1, 3))
        out = channels + 2 * more
        body = [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out)]
        pad = Do(
            f"x[:, :, ::2, ::2], {more} channels before and behind",
            lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more)),
        )
        shortcut = nn.Conv2d(channels, out, 1, 2) if kind == "1x1" else pad
    return nn.Sequential(Add(nn.Sequential(*body), shortcut), activation(draw))


def concat(draw: DrawFn, shape: Shape) -> nn.Module:
    pool = nn.MaxPool2d(3, 1, 1)
    few = Do("x[:, :2]", lambda x: x[:, :2])
    branches: list[nn.Module] = [convolution(draw, shape, draw(st.integers(1, 4)), same=True)]
    for _ in range(draw(st.integers(1, 2))):
        other = draw(st.sampled_from(["conv", "identity", "pool", "slice"]))
        conv = convolution(draw, shape, 2, same=True, linear=draw(st.booleans())) if other == "conv" else nn.Identity()
        branches.append({"pool": pool, "slice": few}.get(other, conv))
    return Concat(branches)


def pool(draw: DrawFn, shape: Shape) -> nn.Module:
    if min(shape[1:]) < 4:
        return nn.MaxPool2d(1)
    kinds = (
        lambda: nn.MaxPool2d(2),
        lambda: nn.MaxPool2d(3, 2, 1),
        lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
        lambda: nn.AvgPool2d(2),
        lambda: nn.AvgPool2d(3, 2, 1),
        lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
        lambda: nn.AdaptiveAvgPool2d(2),
    )
    return draw(st.sampled_from(kinds))()


def gate(draw: DrawFn, shape: Shape) -> nn.Module:
    channels, few = shape[0], max(1, shape[0] // 2)
    squeeze = function(
        draw,
        ("mean", lambda x: x.mean((2, 3), keepdim=True)),
        ("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1)),
    )
    sigmoid = draw(st.sampled_from([nn.Sigmoid, nn.Hardsigmoid]))()
    return Gate(
        nn.Sequential(squeeze, nn.Conv2d(channels, few, 1), activation(draw), nn.Conv2d(few, channels, 1), sigmoid)
    )


def pad(draw: DrawFn, shape: Shape) -> nn.Module:
    return function(
        draw,
        ("F.pad(x, (0, 1, 0, 1))", lambda x: F.pad(x, (0, 1, 0, 1))),
        ("F.pad(x, (1, 0, 2, 1))", lambda x: F.pad(x, (1, 0, 2, 1))),
        ("F.pad(x, (1, 1, 1, 1), value=0.5)", lambda x: F.pad(x, (1, 1, 1, 1), value=0.5)),
        ("F.pad(x, (0, -1, 0, 1))", lambda x: F.pad(x, (0, -1, 0, 1))),
    )


def shuffle(draw: DrawFn, shape: Shape) -> nn.Module:
    channels, height, width = shape
    if channels % 2:
        return Do("x.flip", lambda x: torch.cat([x[:, 1:], x[:, :1]], 1))
    by_hand = Do(
        "shuffle",
        lambda x: x.view(-1, 2, channels // 2, height, width).transpose(1, 2).reshape(-1, channels, height, width),
    )
    return draw(st.sampled_from([nn.ChannelShuffle(2), by_hand]))


def upsample(draw: DrawFn, shape: Shape) -> nn.Module:
    if shape[1] > 8:
        return nn.Identity()
    if shape[0] % 4 == 0 and draw(st.booleans()):
        return nn.PixelShuffle(2)
    return function(
        draw,
        ("interpolate by 2", lambda x: F.interpolate(x, scale_factor=2)),
        ("interpolate to (12, 10)", lambda x: F.interpolate(x, (12, 10))),
    )


def transposed(draw: DrawFn, shape: Shape) -> nn.Module:
    channels, out = shape[0], 2 * draw(st.integers(1, 4))
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    kernel, stride, padding, extra = draw(st.sampled_from([(2, 2, 0, 0), (4, 2, 1, 0), (3, 1, 1, 0), (3, 2, 1, 1)]))
    norm = draw(st.booleans())
    layer = nn.ConvTranspose2d(channels, out, kernel, stride, padding, extra, groups, bias=not norm)
    return nn.Sequential(layer, nn.BatchNorm2d(out) if norm else nn.Identity(), activation(draw))


def norm(draw: DrawFn, shape: Shape) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(shape[0]), activation(draw))


def just_activation(draw: DrawFn, shape: Shape) -> nn.Module:
    return activation(draw)


def head(draw: DrawFn, shape: Shape) -> nn.Module:
    channels, size = shape[0], math.prod(shape)
    linear = nn.Linear(channels, draw(st.integers(2, 6)), bias=draw(st.booleans()))
    kind = draw(st.sampled_from(["pool", "mean", "mlp", "flatten", "conv", "conv tanh", "pooled"]))
    if kind == "pool":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    if kind == "mean":
        return nn.Sequential(Do("mean", lambda x: x.mean((2, 3))), linear)
    if kind == "mlp":
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 7), activation(draw), nn.Linear(7, 3)
        )
    if kind == "flatten":
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 3))
    if kind == "pooled":
        return nn.Sequential(nn.Conv2d(channels, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(channels, 3, 1), nn.Tanh() if kind == "conv tanh" else nn.Identity())


MIDDLE = (residual, residual, concat, pool, gate, pad, shuffle, upsample, transposed, norm, just_activation)


@st.composite
def nets(draw: DrawFn) -> tuple[nn.Module, Shape]:
    """A net in eval mode with random weights and batch norms that have a history, and the shape of its input."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    shape: Shape = (3, *draw(st.sampled_from([(16, 16), (12, 12), (8, 10)])))
    image = shape
    parts: list[nn.Module] = []
    for part in draw(st.lists(st.one_of(st.just(convolution), st.sampled_from(MIDDLE)), min_size=1, max_size=5)):
        made = part(draw, shape)
        after = shape_after(made, shape)
        if after[0] <= MOST and max(after[1:]) <= 24:
            parts, shape = [*parts, made], after
    net = Net(parts, [head(draw, shape) for _ in range(draw(st.sampled_from([1, 1, 1, 2])))])
    with_history(net)
    _damage(net, draw(st.sampled_from(["", "", "dead", "unequal", "large"])))
    return net.eval(), image


@torch.no_grad()
def _damage(net: nn.Module, kind: str) -> None:
    """Channels as trained networks have them: dead ones, all of very different size, or all large."""
    for module in net.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if kind == "dead":
            module.weight[0] = 0.0
        elif kind == "unequal":
            module.weight *= torch.logspace(-3, 1, len(module.weight)).view(-1, 1, 1, 1)
        elif kind == "large":
            module.weight *= 10.0


@st.composite
def qconfigs(draw: DrawFn) -> QConfig:
    """Bits, grids, placement and target that go together."""
    placement = draw(st.sampled_from(["integer"] * 4 + sorted(PLACEMENTS)))
    target = TARGETS[
        draw(st.sampled_from(["onnxruntime"] * 6 + sorted(TARGETS))) if placement == "integer" else "onnxruntime"
    ]
    return QConfig(
        weight_bits=draw(st.integers(2, 8)),
        act_bits=draw(st.integers(target.act_bits, 8)),
        first_last=draw(st.sampled_from([8, 8, None])),
        placement=placement,
        weights=draw(
            st.sampled_from([g for g in ("per_channel", "per_channel", *WEIGHT_GRIDS) if g in target.weights])
        ),
        activations=draw(st.sampled_from([g for g in ACTIVATION_GRIDS if g in target.activations])),
        target=target.name,
    )
