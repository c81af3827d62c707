"""What stands under `no_grad`, `autocast` or a checkpoint is part of the graph, and read as everything else."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import images

from zaq.ir.capture import from_exported, trace


class Regions(nn.Module):
    """A layer in a region of some kind, one in a region of that, and one outside; both results leave."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.norm = nn.BatchNorm2d(4)

    def inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.first(x)).relu_()
        with torch.no_grad():
            z = self.second(y)
        return y, z

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "no_grad":
            with torch.no_grad():
                y, z = self.inner(x)
        elif self.kind == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                y, z = self.inner(x)
        elif self.kind == "autocast off":
            with torch.autocast("cuda", enabled=False):
                y, z = self.inner(x)
        else:
            y, z = checkpoint(self.inner, x, use_reentrant=self.kind == "reentrant checkpoint")
        return y, self.last(z.float().mean((2, 3)))


def operations(gm: torch.fx.GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("kind", "strict"),
    [
        ("no_grad", False), ("no_grad", True), ("autocast", False), ("autocast", True), ("autocast off", False),
        ("checkpoint", False), ("reentrant checkpoint", False),  # torch's own strict export fails of these
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's checkpoint, without training
def test_regions_are_inlined(kind: str, strict: bool) -> None:
    torch.manual_seed(0)
    model, x = Regions(kind).eval(), images(3)
    batch = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=batch, strict=strict)
    graph = from_exported(program)
    found = operations(graph)
    assert found.count("aten.conv2d.default") == 2 and not [n for n in found if n.startswith("wrap") or "tag_" in n]
    values = (n.meta.get("val") for n in graph.graph.nodes)
    assert {v.dtype for v in values if isinstance(v, Tensor)} == {torch.float32}
    with torch.no_grad():
        wanted, theirs = model(x), graph(x)
    half = kind == "autocast"
    for a, b in zip(wanted, theirs, strict=True):
        assert torch.allclose(a.float(), b, atol=0.05 if half else 1e-6)
    noted = any("bfloat16 in places" in note for note in graph.meta["notes"])
    assert noted == half


def test_a_network_wholly_under_no_grad_is_traced() -> None:
    """Its output is a region's: the program's own list of outputs names it."""

    class Decorated(nn.Sequential):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)  # type: ignore[no-any-return]

    model = Decorated(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    graph = trace(model, images(2))
    assert operations(graph) == ["aten.conv2d.default", "aten.relu.default", "aten.conv2d.default"]
    assert torch.equal(graph(images(3)), model(images(3)))
