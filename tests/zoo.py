"""Tiny nets, one for each structure that has broken a quantizer before. Random weights, batch norm with a history."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from zaq.api import quantize_graph
from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.progress import Progress
from zaq.engine.state import HeldOut, State
from zaq.engine.task import Task
from zaq.ir.capture import quiet, trace
from zaq.ir.nodes import input_node
from zaq.passes.fold import fold
from zaq.quantized import Learned
from zaq.synth.losses import relative_discrepancy

SHAPE = (3, 16, 16)
CARD = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)


def conv(channels_in: int, channels_out: int, **kwargs: object) -> nn.Sequential:
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False, **kwargs)  # type: ignore[arg-type]
    return nn.Sequential(layer, nn.BatchNorm2d(channels_out), nn.ReLU())


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 8), nn.Sequential(conv(8, 8), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.down, self.head = conv(8, 16, stride=2), head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.body(x))
        return self.head(self.down(x))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(3, 8), conv(8, 8), conv(8, 4)
        self.after, self.head = conv(12, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.after(torch.cat([self.left(x), self.right(x)], 1)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        depth = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        point = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.net = nn.Sequential(conv(3, 8), depth, point, head(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(3, 8), conv(8, 8, groups=2), conv(8, 8, groups=4), head(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.expand = conv(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.after, self.head = conv(8, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(self.after(x * gate))


class FunctionalBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 8, 3), head(8)
        self.gamma, self.beta = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8) * 0.1)
        self.register_buffer("mean", torch.randn(8) * 0.1)
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(self.layer(x), self.mean, self.var, self.gamma, self.beta, False, 0.1, 1e-5)  # type: ignore[arg-type]
        return self.head(F.relu_(y))


class SharedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.norms = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.shared(F.relu(self.norms(self.shared(x))))))


class KeywordForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), head(8)

    def forward(self, x: Tensor, out_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        feature = self.stem(x)
        out = self.head(feature)
        return (out, feature) if out_feature else out


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = conv(3, 8, stride=2)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.out(self.up(self.down(x))))


class Signed(nn.Module):
    """Convolutions that read what no ReLU has rectified, and a batch norm that has nothing to fold into."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.pre, self.c, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.leaky_relu(self.c(self.pre(x + self.b(x)))))


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 8), nn.AvgPool2d(2), conv(8, 8))
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x).flatten(1))


class MeanHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Sequential(conv(3, 8, stride=2), conv(8, 8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(F.pad(x, (0, 1, 0, 1))).mean((2, 3)))


class NoBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), head(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Shuffle(nn.Module):
    """ShuffleNet's halves and channel shuffle, then MobileNetV3's hard swish and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = conv(3, 8), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4))
        self.after, self.reduce, self.expand = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, F.relu(self.side(right))], 1)
        n, c, h, w = x.shape
        x = F.hardswish(self.after(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))
        return self.head(x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))))


class Tokens(nn.Module):
    """A transformer: patches, positions, a block of shifted windows (Swin) and one with a class token (ViT)."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches, self.position = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 4, 4, width) * 0.1)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, width))
        self.head, self.table = nn.Linear(width, 5), nn.Parameter(torch.randn(9, heads))
        offsets = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        self.register_buffer(
            "index", ((offsets[:, :, None] - offsets[:, None]) + 1).mul(torch.tensor([3, 1])[:, None, None]).sum(0)
        )

    def windows(self, x: Tensor) -> Tensor:  # (N, 4, 4, C) -> the same, attended to in windows of 2x2, shifted by one
        n, h, w, c = x.shape
        x = torch.roll(x, (-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv[0](x).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mask = x.new_zeros(h, w)
        mask[-1:] = 1
        mask[:, -1:] += 2
        mask = mask.view(h // 2, 2, w // 2, 2).permute(0, 2, 1, 3).reshape(-1, 4)
        mask = (mask[:, None] - mask[:, :, None]).ne(0) * -100.0
        logits = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1) + self.table[self.index].permute(2, 0, 1)  # type: ignore[index]
        logits = logits.view(n, -1, self.heads, 4, 4) + mask[:, None]
        x = self.out[0]((logits.view(-1, self.heads, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c))
        x = x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(x, (1, 1), (1, 2))

    def attention(self, x: Tensor) -> Tensor:  # (N, T, C)
        n, t, c = x.shape
        q, k, v = self.qkv[1](x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out[1](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1) + self.position
        x = (x + self.windows(self.norms[0](x))).flatten(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.attention(self.norms[1](x))
        x = x + self.mlp(self.norms[2](x))
        return self.head(self.norms[3](x)[:, 0])


ZOO: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "concat": Concat,
    "depthwise": Depthwise,
    "grouped": Grouped,
    "squeeze_excite": SqueezeExcite,
    "functional_batch_norm": FunctionalBatchNorm,
    "shared_weight": SharedWeight,
    "keyword_forward": KeywordForward,
    "transposed": Transposed,
    "signed": Signed,
    "pools": Pools,
    "mean_head": MeanHead,
    "no_batch_norm": NoBatchNorm,
    "shuffle": Shuffle,
    "tokens": Tokens,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A net of the zoo in eval mode, its batch norms as if it had been trained."""
    torch.manual_seed(seed)
    return with_history(ZOO[name]()).eval()


@functools.cache
def _trace(name: str, seed: int) -> GraphModule:
    return trace(build(name, seed), images(1))


def traced(name: str, seed: int = 0) -> GraphModule:
    """The graph of a net of the zoo, a copy of its own: tracing takes longer than most of what is tested."""
    return copy.deepcopy(_trace(name, seed))


def quantized_net(name: str, bits: str | QConfig, method: Any, **options: Any) -> Learned:
    """`zaq.quantize` of a net of the zoo, traced once."""
    return quantize_graph(traced(name), QConfig.parse(bits) if isinstance(bits, str) else bits, method, **options)


def quantized_like(net: nn.Module, x: Tensor, bits: str | QConfig, method: Any, **options: Any) -> Learned:
    """`zaq.quantize` but for the export that it tries first, which takes longer than a toy's whole method."""
    graph, bits = trace(net, x), QConfig.parse(bits) if isinstance(bits, str) else bits
    return quantize_graph(graph, bits, method, **({"card": Card(), "notes": graph.meta["notes"]} | options))


def saved(name: str, path: Path) -> Path:
    """A net of the zoo as a .pt2."""
    with quiet():
        program = torch.export.export(build(name), (images(2),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.export.save(program, path)
    return path


def state_of(graph: str | GraphModule, bits: str | QConfig = "w3a3", card: Card = CARD, **task: Any) -> State:
    """The state that a run on a net of the zoo, or on a graph, begins with."""
    graph = traced(graph) if isinstance(graph, str) else graph
    card = card.override(input=tuple(int(d) for d in input_node(graph).meta["val"].shape[1:]))
    return State(Task(fold(graph)[0], QConfig.parse(bits) if isinstance(bits, str) else bits, card, **task))


def calibrated(name: str, bits: str = "w3a3", **task: Any) -> State:
    """The same behind calibration: it learns from, and is judged on, 64 images."""
    state = state_of(name, bits, **task)
    state.images = state.samples = images(64)
    with state.student.watching(), torch.no_grad():
        state.student(state.images)
    state.judge = HeldOut(state, state.images, relative_discrepancy)
    return state


def with_history(model: nn.Module) -> nn.Module:
    """The same model, its batch norms with statistics and weights as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model


def images(n: int = 4, seed: int = 1) -> Tensor:
    """A batch of inputs for the zoo, (n, 3, 16, 16)."""
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


class Impatient(Progress):
    """Presses Ctrl-C when a stage of a name asks for its step number `at`."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.at = stage, at

    def track(self, what: str, steps: int):  # type: ignore[no-untyped-def]
        for i in range(steps):
            if what == self.stage and i == self.at:
                raise KeyboardInterrupt
            yield i
