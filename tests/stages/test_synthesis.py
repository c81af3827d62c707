"""Generators and pixels that learn what a teacher remembers; of large images a part starts from noise."""

import pytest
import torch
from torch import Tensor, nn
from toy import CARD as TOY_CARD
from toy import gratings, trained
from zoo import SHAPE, build, conv, images, state_of

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stage, run_stages
from zaq.engine.state import State
from zaq.errors import BitsError
from zaq.ir.capture import trace
from zaq.ir.taps import with_taps
from zaq.stages import synthesis
from zaq.stages.synthesis import Draw, FromNoise, Mingle, Refine, Synthesize
from zaq.synth.losses import batch_norm_loss, channel_moments


def toy() -> State:
    return state_of(trace(trained(), gratings(2, seed=0)[0]), "w4a4", TOY_CARD)


def test_synthesis_learns_classes_and_statistics() -> None:
    state, journal = toy(), Journal()
    run_stages([Synthesize(steps=60)], state, journal)
    with torch.no_grad():
        x, labels = state.generator.sample(256)
        right = float((state.task.teacher(x).argmax(1) == labels).float().mean())
    assert right > 0.3, "of five classes"
    first, *_, last = journal.log.rows
    assert last["batch_norm"] < 0.7 * first["batch_norm"] and last["classes"] < 0.7 * first["classes"]


def test_a_way_back_keeps_the_canvas_in_the_image() -> None:
    """lambda ||F(G(x)) - x||_1, of pixels from -1 to 1; what it counts for is gone down."""
    state = toy()
    low, high = TOY_CARD.bounds()
    canvas, images = torch.rand(2, 64, 3, 16, 16)

    class Still(nn.Module):
        def starts(self, n: int) -> tuple[Tensor, None]:
            return canvas, None

        def forward(self, *_: object) -> Tensor:
            return images

    class Back(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return canvas + 0.125 * (high - low) * (x == images)

    drawn, labels, found = Synthesize(cycle=10.0)._drawn(Still(), Back(), task=state.task)  # type: ignore[arg-type]
    assert drawn is images and labels is None and float(found["cycle"]) == pytest.approx(10 * 0.25)

    ends = []
    for weight in (1e-6, 100.0):
        journal = Journal()
        run_stages([Synthesize(steps=12, cycle=weight, width=8)], state_of("residual"), journal)
        ends.append(journal.log.rows[-1]["cycle"] / weight)
    assert ends[1] < 0.7 * ends[0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("residual", {"generator": "biggan"}, "cycle=10: the generator biggan starts from no canvas; painter does"),
        ("neither", {}, "cycle=10: the teacher has neither batch norm nor classes"),
    ],
)
def test_where_there_is_no_way_back_it_is_a_sentence(name: str, options: dict[str, str], said: str) -> None:
    bare = trace(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3)), images(2))
    state = state_of(bare if name == "neither" else name)
    with pytest.raises(BitsError, match=said):
        run_stages([Synthesize(steps=2, cycle=10.0, **options)], state, Journal())  # type: ignore[arg-type]


def test_the_one_held_out_is_another() -> None:
    state, journal = toy(), Journal()
    stages = [
        Synthesize(steps=2),
        Synthesize(name="held-out synthesis", steps=2, held_out=True),
        Draw(count=70),
        Draw(name="held-out draw", count=33, held_out=True),
    ]
    run_stages(stages, state, journal)
    assert state.generator is not state.other and state.images is not None and state.samples is not None
    assert (len(state.images), len(state.samples), state.held_out) == (70, 33, True)
    assert torch.cdist(state.samples.flatten(1), state.images.flatten(1)).min() > 1
    assert [r.name for r in journal.records] == ["synthesis", "held-out synthesis"], "drawing is over in no time"


def test_a_short_synthesis_draws_from_fewer_classes() -> None:
    few, all_five = state_of("residual"), state_of("no_batch_norm")  # the latter excites the last features instead
    journal = Journal()
    run_stages([Synthesize(steps=4)], few, journal)
    run_stages([Synthesize(steps=30)], all_five, Journal())
    learned = min(5, 4 * few.task.batch // 100)
    assert len(few.generator.drawn) == learned and len(all_five.generator.drawn) == 5
    assert journal.records[0].note == f"it learns {learned} of 5 classes, drawn at random"


def statistics(state: State, x: Tensor) -> float:
    stats = state.task.batch_norms()
    with torch.no_grad():
        return float(
            batch_norm_loss(with_taps(state.task.teacher, [*stats], channel_moments)(x)[1], list(stats.values()))
        )


def test_refined_images_are_nearer_to_the_statistics_each_on_its_own() -> None:
    state, journal = toy(), Journal()
    run_stages([Synthesize(steps=10), Draw(count=2 * state.task.batch)], state, journal)
    drawn = state.images
    assert drawn is not None
    run_stages([Refine(steps=40)], state, journal)
    refined = state.images
    assert refined is not None and refined is not drawn and refined.shape == drawn.shape
    assert statistics(state, refined) < 0.7 * statistics(state, drawn)
    assert torch.equal(refined, state.task.card.in_bounds(refined))
    assert journal.records[-1].steps == 40 * -(-len(drawn) // 128)
    assert {"batch_norm", "classes"} <= set(journal.log.rows[-1])


def test_what_is_sure_already_counts_less() -> None:
    """(1 - p)^gamma CE (HAST, eq. 5), where the weight is no way down."""
    torch.manual_seed(0)
    logits, labels = (3 * torch.randn(6, 5)).requires_grad_(True), torch.tensor([0, 1, 2, 3, 4, 0])
    p = logits.detach().softmax(1)[torch.arange(6), labels]
    for gamma in (0.0, 2.0):
        loss = Synthesize(gamma=gamma)._hard(logits, labels)
        torch.testing.assert_close(loss.detach(), ((1 - p) ** gamma * -p.log()).mean())
        (gradient,) = torch.autograd.grad(loss, logits)
        wanted = logits.detach().softmax(1) - torch.nn.functional.one_hot(labels, 5)
        torch.testing.assert_close(gradient, ((1 - p) ** gamma).view(-1, 1) * wanted / 6)


def test_refinement_looks_at_images_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    reaches: list[int] = []
    monkeypatch.setattr(synthesis, "shifted", lambda x, reach: (reaches.append(reach), x)[1])
    state = toy()
    state.images = images(8)
    run_stages([Refine(steps=3)], state, Journal())
    assert reaches == [16 // 16] * 3


def test_what_is_not_refined() -> None:
    nothing_known, large = state_of("no_batch_norm"), toy()
    object.__setattr__(large.task, "card", large.task.card.override(input=(3, 96, 16)))
    assert not Refine().applies(nothing_known) and not Refine().applies(large) and Refine().applies(toy())
    assert [FromNoise().applies(state) for state in (nothing_known, large, toy())] == [False, True, False]


def test_of_large_images_a_part_starts_from_noise() -> None:
    for held_out, every in ((False, 4), (True, 2)):
        state, journal = toy(), Journal()
        run_stages([Synthesize(steps=4), Draw(count=64), Draw(count=64, held_out=True)], state, journal)
        before = (state.samples if held_out else state.images).clone()  # type: ignore[union-attr]

        class Anyway(FromNoise):
            def applies(self, state: State) -> bool:
                return True

        run_stages([Anyway(steps=4, every=every, held_out=held_out)], state, journal)
        found = state.samples if held_out else state.images
        other = state.images if held_out else state.samples
        assert found is not None and other is not None
        noise = torch.arange(len(found)) % every == 0
        roughness = (found - found.roll(1, 3)).abs().mean((1, 2, 3))
        assert float(roughness[noise].median()) > 2 * float(roughness[~noise].median())
        assert torch.equal(found[~noise], before[~noise])


def test_ctrl_c_leaves_no_noise_among_the_images() -> None:
    """Images whose turn did not come, or that have not gone all their steps, stay as they were painted."""
    state, journal = toy(), Journal()
    run_stages([Synthesize(steps=4), Draw(count=256)], state, journal)
    before = state.images.clone()  # type: ignore[union-attr]

    class Impatient(FromNoise):
        def applies(self, state: State) -> bool:
            return True

        def start(self, state, journal):  # type: ignore[no-untyped-def]
            loop, batch = super().start(state, journal), state.task.batch
            take = loop.step

            def step(i: int, of: int) -> dict[str, float]:
                if i == self.length(state) // 2 + 1:  # of the second of two parts
                    raise KeyboardInterrupt
                assert len(loop.images[0]) == batch
                return take(i, of)

            loop.step = step
            return loop

    run_stages([Impatient(steps=8, every=2)], state, journal)
    moved = (state.images != before).flatten(1).any(1)  # type: ignore[union-attr,operator]
    assert journal.interrupted and moved.nonzero().flatten().tolist() == list(range(0, 2 * state.task.batch, 2))


def test_images_that_are_given_are_not_changed() -> None:
    state, x = toy(), images(8)
    state.images = x.clone()
    kept = state.images
    run_stages([Refine(steps=2)], state, Journal())
    assert torch.equal(kept, x) and not torch.equal(state.images, x)


@pytest.mark.parametrize(
    ("net", "share"),
    [(nn.Conv2d(3, 4, 3), 0.5), (build("no_batch_norm"), 0.0), (nn.Sequential(conv(3, 4), nn.Conv2d(4, 4, 1)), 0.0)],
    ids=["nothing is known", "classes", "batch norm"],
)
def test_where_nothing_is_known_half_of_what_is_judged_by_is_noise(net: nn.Module, share: float) -> None:
    state = state_of(trace(net.eval(), images(2)))
    state.samples = before = torch.zeros(8, *SHAPE)
    run_stage(Mingle(), state, Journal())
    assert state.samples is not None and not before.any()
    assert float(state.samples.flatten(1).any(1).float().mean()) == share
