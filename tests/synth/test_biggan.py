"""BigGAN's generator: what conditions what, truncation, its average, and what its weights cost."""

import copy

import pytest
import torch

from zaq.compute.random import drawing
from zaq.config.card import Card
from zaq.engine.snapshot import Content, told_in
from zaq.errors import BitsError
from zaq.synth.biggan import BigGAN
from zaq.synth.generators import DCGAN
from zaq.synth.losses import orthogonal_loss


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 7, 5), (3, 96, 50)])
@pytest.mark.parametrize("classes", [None, 10])
def test_shape_and_range(shape: tuple[int, ...], classes: int | None) -> None:
    card = Card(input=shape, mean=(0.4,) * shape[0], std=(0.2,) * shape[0])
    generator = BigGAN(card, 20, 16, classes)
    images, labels = generator.sample(6)
    assert images.shape == (6, *shape) and (labels is None) == (classes is None)
    low, high = card.bounds()
    assert (images >= low).all() and (images <= high).all() and images.std() > 0.02 * (high - low).mean()
    (images.sum() + sum(generator.costs().values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in generator.parameters())


def test_every_block_has_its_chunk_and_the_class() -> None:
    """The chunk of the last block moves what that block does and nothing before it; the class moves every block."""
    generator = BigGAN(Card(input=(3, 32, 32)), 40, 16, 4)
    assert generator.sizes == [10, 10, 10, 10] and len(generator.blocks) == 3
    generator.eval()  # so that spectral norms stay
    seen: list[list[torch.Tensor]] = []
    for block in generator.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen[-1].append(output.detach()))
    z, labels = torch.randn(6, 40), torch.zeros(6, dtype=torch.int64)
    other = torch.cat([z[:, :30], torch.randn(6, 10)], 1)
    for start, of in ((z, labels), (other, labels), (z, labels + 1)):
        seen.append([])
        generator(start, of)
    plain, chunk, named = seen
    assert [torch.equal(a, b) for a, b in zip(plain, chunk, strict=True)] == [True, True, False]
    assert not any(torch.equal(a, b) for a, b in zip(plain, named, strict=True))


def test_weights_are_divided_by_their_largest_singular_value_but_the_embedding() -> None:
    generator = BigGAN(Card(input=(3, 16, 16)), 20, 16, 4)
    with torch.no_grad():
        for p in generator.parameters():
            p.mul_(3)
        for _ in range(20):
            generator(*generator.starts(4))
    layers = [m for m in generator.modules() if hasattr(m, "parametrizations")]
    assert len(layers) == 2 + 7 * len(generator.blocks)
    for layer in layers:
        assert float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) == pytest.approx(1, abs=0.02)
    assert generator.shared is not None
    assert float(torch.linalg.svdvals(generator.shared.weight.detach())[0]) == pytest.approx(3, abs=1e-4)


def test_orthogonal_regularisation_has_its_closed_gradient() -> None:
    weights = [torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True), torch.randn(3, 9, dtype=torch.float64)]
    loss = orthogonal_loss(weights)
    flat = [w.detach().flatten(1) for w in weights]
    beside = [(w @ w.T) * (1 - torch.eye(len(w), dtype=torch.float64)) for w in flat]
    torch.testing.assert_close(loss, torch.stack([b.pow(2).sum() for b in beside]).sum())
    (gradient,) = torch.autograd.grad(loss, weights[0])
    torch.testing.assert_close(gradient.flatten(1), 4 * beside[0] @ flat[0])
    q, _ = torch.linalg.qr(torch.randn(8, 5))
    assert float(orthogonal_loss([5 * q.T])) == pytest.approx(0, abs=1e-6)


def test_it_begins_orthogonal_and_the_embedding_costs_nothing() -> None:
    generator = BigGAN(Card(input=(3, 16, 16)), 300, 8, 4)
    before = float(generator.costs()["orthogonal"].detach())
    with torch.no_grad():
        generator.shared.weight.add_(1)  # type: ignore[union-attr]
        assert float(generator.costs()["orthogonal"]) == before
        generator.blocks[0].past.parametrizations.weight.original.add_(1)
        assert float(generator.costs()["orthogonal"]) > before + 1e-3


@pytest.mark.parametrize("end", [0.04, 0.5, 2.0])
def test_truncated_normals_are_those_that_lie_inside(end: float) -> None:
    """As if what lies beyond had been drawn again: the variance of a truncated normal, and nothing beyond."""
    for generator in (BigGAN(Card(input=(3, 8, 8)), 50, 8), DCGAN(Card(input=(3, 8, 8)), 50, 8)):
        with generator.truncated(end):
            z = generator.source(2000)
        assert float(z.abs().max()) <= end
        again = torch.randn(10**6)
        again = again[again.abs() < end]
        assert float(z.std()) == pytest.approx(float(again.std()), rel=0.02)
        assert float(generator.source(100).abs().max()) > 2.5


def test_it_draws_by_the_average_of_its_weights() -> None:
    """The mean with weights (1 + n) / (10 + n) of before, up to 0.9999; what was drawn before stays what it was."""
    generator = BigGAN(Card(input=(3, 8, 8)), 20, 8, 3)
    wanted = generator.average.clone()
    optimizer = torch.optim.SGD(generator.parameters(), 0.1)
    for n in range(5):
        keep = (1 + n) / (10 + n)
        now = torch.cat([p.detach().reshape(-1) for p in generator.parameters()])
        images, _ = generator.sample(4)
        wanted = keep * wanted + (1 - keep) * now
        optimizer.zero_grad()
        images.square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(generator.average, wanted)
    assert float(generator.steps) == 5

    other = copy.deepcopy(generator).eval()
    at = 0
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(wanted[at : at + p.numel()].view(p.shape))
            at += p.numel()
    generator.eval()
    with drawing(3):
        drawn = generator.draw(4)
    with drawing(3):
        expected = other.sample(4)[0]
    torch.testing.assert_close(drawn, expected.detach())
    assert float(generator.steps) == 5  # drawing is no step


def test_a_snapshot_holds_it() -> None:
    generator = BigGAN(Card(input=(3, 8, 8)), 20, 8, 3)
    generator.sample(4)
    content = b"".join(bytes(part) for part in Content({"found": generator}))
    told = told_in(content, "found")
    assert told is not None
    again = told["found"]
    for make in (generator, again):
        make.eval()
    with drawing(1):
        first = generator.draw(3)
    with drawing(1):
        assert torch.equal(first, again.draw(3))


def test_a_latent_too_small_is_a_sentence() -> None:
    with pytest.raises(BitsError, match="latent is 3; biggan shares it out among 4 layers, which is the least"):
        BigGAN(Card(input=(3, 32, 32)), 3, 8)
