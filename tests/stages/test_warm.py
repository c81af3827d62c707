"""Synthesis begins as given generators do, with their classes where the network has as many."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from zoo import CARD, images, state_of

from zaq.config.card import Card
from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.engine.state import State
from zaq.errors import BitsError
from zaq.methods import ZAQ, Flagship
from zaq.stages.synthesis import Draw, Synthesize
from zaq.stages.warm import warmed
from zaq.synth.generators import DCGAN, Generator
from zaq.synth.leaves import Painter
from zaq.synth.merge import Cocktail, Of, averaged, shared

PLACE = Path("painters.safetensors")


@functools.cache
def _learned() -> Generator:
    state = state_of("residual", seed=3)
    run_stages([Synthesize(steps=10)], state, Journal())
    assert isinstance(state.generator, Painter)
    return state.generator


def learned() -> Generator:
    """The generator that the recipe's synthesis trains for a net of the zoo, which has five classes."""
    return copy.deepcopy(_learned())


def given(*generators: Generator) -> Cocktail:
    return Cocktail([Of(f"net {i}", None) for i in range(len(generators))], list(generators))


def begun(cocktail: Cocktail, steps: int = 0, net: str = "residual") -> tuple[State, Journal]:
    """What the recipe's synthesis of so many steps comes to."""
    state, journal = state_of(net, seed=5), Journal()
    stages = warmed(Flagship(synthesis=steps).plan(state.task), cocktail, state.task, "flagship", PLACE)
    run_stages([s for s in stages if isinstance(s, Synthesize)], state, journal)
    return state, journal


def test_without_a_step_it_draws_what_the_given_one_drew() -> None:
    generator = learned()
    generator.drawn = torch.tensor([0, 2, 3])
    state, journal = begun(given(generator))
    torch.manual_seed(1)
    wanted = generator.sample(8)
    torch.manual_seed(1)
    found = state.generator.sample(8)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True) if a is not None and b is not None)
    assert journal.records[0].note.startswith("it begins as the generator of net 0; it learns 3 of 5 classes")
    others = dict(state.other.named_parameters())  # of what is held out: at random
    assert not any(torch.equal(p, others[name]) for name, p in generator.named_parameters() if p.dim() > 1)


def test_steps_go_on_from_there() -> None:
    """It is nearer after no step than a random one is after some, and some more bring it on."""
    cocktail = given(learned())
    cold = state_of("residual", seed=5)
    journals = [Journal(), *(begun(cocktail, steps)[1] for steps in (1, 8))]
    run_stages([Synthesize(steps=8)], cold, journals[0])
    first = [[row["batch_norm"] for row in j.log.rows if row["stage"] == "synthesis"] for j in journals]
    assert first[1][0] < first[0][0] * 0.8 and min(first[2]) < first[1][0]


def test_of_several_it_is_the_one_whose_images_the_network_likes() -> None:
    """The others are a painter at random, and one of more classes, whose images are of another network's."""
    torch.manual_seed(0)
    good = learned()
    state, journal = begun(given(Painter(CARD, 32, 5), Painter(CARD, 32, 7), good))
    assert journal.records[0].note.startswith("it begins as the generator of net 2")
    assert all(torch.equal(p, q) for p, q in zip(state.generator.parameters(), good.parameters(), strict=True))


def test_where_no_network_has_as_many_classes_they_begin_anew() -> None:
    torch.manual_seed(0)
    mixed = averaged([Painter(CARD, 32, 7), Painter(CARD, 32, 8)])
    state, journal = begun(given(*mixed))
    assert "its classes anew: no network there has 5" in journal.records[0].note
    assert all(torch.equal(p, shared(mixed[0])[name]) for name, p in shared(state.generator).items())
    assert state.generator.classes == 5 and len(state.generator.drawn) == 2
    run_stages([Draw(count=8)], state, journal)
    assert state.images is not None and state.images.isfinite().all()


@pytest.mark.parametrize(
    ("generator", "method", "net", "why"),
    [
        (Painter(CARD, 32, 5), ZAQ(), "residual", "--method zaq has no synthesis that could begin so; flagship has"),
        (Painter(CARD, 32, 5), Flagship(), "transposed", "the model has no classes"),
        (DCGAN(CARD, 128, 32, 5), Flagship(), "residual", r"holds a dcgan \(latent 128, width 32, .*trains a painter"),
        (
            Painter(CARD, 16, 5),
            Flagship(),
            "residual",
            r"a painter \(width 16\) of .* trains a painter \(width 32",
        ),
        (Painter(Card(input=(3, 32, 32)), 32, 5), Flagship(), "residual", "of 3x32x32 rgb images, and this run trains"),
        (Painter(CARD, 32, 5), Flagship(generator="biggan"), "residual", "in this run its generator is a BigGAN"),
    ],
)
def test_what_does_not_fit_is_a_sentence(generator: Generator, method: object, net: str, why: str) -> None:
    task = state_of(net).task
    with pytest.raises(BitsError, match=why) as refused:
        warmed(method.plan(task), given(generator), task, method.name, PLACE)  # type: ignore[attr-defined]
    assert str(refused.value).startswith("--generator painters.safetensors: ")


def test_another_normalisation_is_the_same_picture() -> None:
    """Generators paint in units of mean 0 and deviation 1, whatever a network reads."""
    other = Card(input=CARD.input, mean=(0.4,) * 3, std=(0.2,) * 3)
    painter = learned()
    moved, journal = state_of("residual", card=other, seed=5), Journal()
    run_stages([Synthesize(steps=0, begin=given(painter))], moved, journal)
    assert moved.generator.card == moved.task.card != painter.card
    canvas, labels = images(4).clamp(-1, 1), torch.zeros(4, dtype=torch.int64)
    both: list[Tensor] = [g(canvas, labels) for g in (painter, moved.generator)]
    inside = (both[0].abs() < 1.9) & (both[1].abs() < 1.9)  # what no bound of a pixel has cut
    assert inside.float().mean() > 0.3
    torch.testing.assert_close(both[0][inside], both[1][inside], atol=1e-5, rtol=1e-5)
