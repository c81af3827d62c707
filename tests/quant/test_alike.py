"""Small detectors: scores from 0 to 1 survive beside boxes of hundreds of pixels, in the student, the file and the
report."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from zoo import quantized_like

from zaq.config.bits import QConfig
from zaq.config.card import Card
from zaq.engine.task import Task
from zaq.export.session import run_session, session
from zaq.ir.capture import trace
from zaq.ir.nodes import output_nodes
from zaq.methods.rtn import RTN
from zaq.passes.fold import fold
from zaq.quant.alike import alike, channel_dim, spreads
from zaq.quant.placement import place
from zaq.verify.layers import compare_layers
from zaq.verify.parity import compare

SHAPE = (3, 16, 16)
CARD = Card(input=SHAPE, mean=(0.5,) * 3, std=(0.5,) * 3)
REACH = 320.0


class Detector(nn.Module):
    """Boxes from 0 to 320 and scores from 0 to 1, brought together as `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.boxes, self.scores, self.all = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 6, 1), nn.Conv2d(16, 10, 1)
        self.register_buffer("stride", torch.tensor([8.0, 16.0]).repeat(32))
        with torch.no_grad():
            for conv in (self.boxes, self.scores, self.all):
                conv.weight.mul_(8)
            self.all.weight[:4] *= 100
            self.all.bias[:4] *= 100

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        y = self.trunk(x)
        if self.how in ("one convolution", "one convolution, clamped", "one convolution, read by places"):
            y = self.all(y)
            if self.how.endswith("clamped"):
                return y.clamp(-300, 300)
            return y if self.how == "one convolution" else y.flatten(2).permute(0, 2, 1)
        boxes, scores = (REACH * self.boxes(y).sigmoid()).flatten(2), self.scores(y).sigmoid().flatten(2)
        if self.how == "joined":
            return torch.cat([boxes, scores], 1)
        if self.how == "by places":
            return torch.cat([boxes.permute(0, 2, 1), scores.permute(0, 2, 1)], -1)
        if self.how == "cut and joined":
            both = torch.cat([boxes, scores], 1)
            return torch.cat([both[:, :2], both[:, 2:]], 1).permute(0, 2, 1).reshape(-1, 8, 8, 10)
        if self.how == "scaled":
            return torch.cat([boxes * self.stride / 8, scores], 1) * 1.5 + 0.25
        if self.how == "stacked":
            return torch.stack([boxes[:, 0], scores[:, 0], boxes[:, 1], scores[:, 1]], 1)
        if self.how == "added":
            one = torch.cat([boxes, scores], 1)
            return one + one.roll(1, 2)
        assert self.how == "left early"
        both = torch.cat([boxes, scores], 1)
        return both, both[:, 4:].amax(1)


HOWS = ["joined", "by places", "cut and joined", "scaled", "stacked", "added", "left early", "one convolution",
        "one convolution, clamped", "one convolution, read by places"]  # fmt: skip


def detector(how: str) -> nn.Module:
    torch.manual_seed(0)
    return Detector(how).eval()


def pixels(n: int = 32) -> Tensor:
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(7))
    return (nn.functional.avg_pool2d(x, 5, 1, 2) - 0.5).mul(4).clamp(-1, 1)


def worst(p: Tensor, q: Tensor) -> float:
    """The least ratio of signal to noise over the channels, in dB."""
    a, b = (x.movedim(channel_dim(p), 0).flatten(1) for x in (p, q))
    return float((10 * (a.var(1) / (a - b).square().mean(1)).log10()).min())


@pytest.mark.parametrize("how", [*HOWS[:3], *(pytest.param(how, marks=pytest.mark.slow) for how in HOWS[3:])])
def test_every_channel_of_the_file_is_heard(how: str, tmp_path: Path) -> None:
    net, x = detector(how), pixels()
    quantized = quantized_like(net, x[:1], "w8a8", RTN(), card=CARD)
    quantized.export(tmp_path / "net.onnx")
    quantized.export(tmp_path / "fused.onnx", form="qoperator")
    with torch.no_grad():
        wanted = net(x) if isinstance(net(x), tuple) else (net(x),)
    for name in ("net.onnx", "fused.onnx"):
        found = run_session(session(tmp_path / name), x)
        for p, q in zip(wanted, found, strict=True):
            assert worst(p, torch.from_numpy(q)) > 18, name
        parity = compare(tmp_path / name, quantized.module, x)
        assert parity.share_worse < 0.01 and parity.worst[1] < 0.005, parity.sentence()
    assert quantized.report["agreement"]["outputs"][0]["worst_sqnr"] > 18
    assert not any("signal" in note for note in quantized.report["notes"])


def test_the_referee_computes_a_convolution_that_leaves_as_floats(tmp_path: Path) -> None:
    quantized = quantized_like(detector("one convolution"), pixels(1), "w8a8", RTN(), card=CARD)
    quantized.export(tmp_path / "net.onnx")
    from zaq.export.program import program_of
    from zaq.ir.capture import from_exported

    checkpoint = from_exported(program_of(quantized.module))
    layers, referee = compare_layers(tmp_path / "net.onnx", checkpoint, pixels(8))
    assert all(layer.file.equal > 0.99 for layer in layers)
    assert torch.allclose(referee.outputs[0], quantized.module(pixels(8)), rtol=1e-3, atol=0.05)
    assert any(line.startswith("conv2d") for line in quantized.report["in_float"])


def test_an_output_of_alike_channels_keeps_its_kernel() -> None:
    """Colours, logits of a mask: rounded as they always were."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    folded, _ = fold(trace(net, torch.zeros(1, *SHAPE)))
    task = Task(folded, QConfig.parse("w8a8"), CARD)
    assert not task.unlike
    placed = place(folded, task.qconfig, CARD, unlike=task.unlike)[1]
    assert output_nodes(folded)[0].name in placed.activations


def test_what_a_kernel_reads_has_a_scale_however_unlike() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector, self.after = Detector("one convolution"), nn.Conv2d(10, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.detector(x)
            return y, self.after(torch.cat([y, y], 1)[:, :10])

    folded, _ = fold(trace(Read().eval(), torch.zeros(1, *SHAPE)))
    task = Task(folded, QConfig.parse("w8a8"), CARD)
    placed = place(folded, task.qconfig, CARD, unlike=task.unlike)[1]
    assert output_nodes(folded)[0].name in placed.activations and all(r for r, _ in placed.layers.values())


def test_a_destroyed_channel_is_reported(tmp_path: Path) -> None:
    """A common scale forced on boxes and scores: the output as a whole looks fine, the report does not."""
    x = pixels()
    quantized = quantized_like(detector("joined"), x[:1], "w8a8", RTN(), card=CARD)
    p = quantized.teacher(x)
    q = (p * 255 / REACH).round() * REACH / 255
    assert 10 * float((p.square().mean() / (p - q).square().mean()).log10()) > 40
    assert worst(p, q) < 3
    quantized.export(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert not any(
        n.op_type == "QuantizeLinear" and n.input[0] == o for n in model.graph.node for c in model.graph.node
        for o in c.output if c.op_type == "Concat"
    )  # fmt: skip


def test_alike() -> None:
    x = torch.rand(4, 5, 6)
    assert alike(x) and not alike(x * torch.tensor([1.0, 1, 1, 1, 0.01]).view(1, 5, 1))
    assert not alike(x * torch.tensor([1.0, 1, 1, 1, 1, 0.01])) and alike(x * torch.tensor([1.0, 1, 1, 1, 1, 0]))
    units = torch.tensor([300.0, 1, 1, 1, 1])
    assert channel_dim(x * units.view(1, 5, 1)) == 1 and channel_dim((x * units.view(1, 5, 1)).mT) == 2
    assert channel_dim(x) == 1 and channel_dim(x[0]) == 1
    assert torch.allclose(spreads(torch.tensor([10.0, 5.0, 0.0])), torch.tensor([10.0, 5.0, 0.01]))
