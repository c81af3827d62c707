"""Photographs that are moved to a teacher's statistics with their content kept, and what they stand in for."""

import pytest
import torch
from zoo import CARD, SHAPE, Impatient, quantized_net, state_of

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.errors import BitsError, DataError
from zaq.methods import METHODS, Flagship
from zaq.stages.proxy import CYCLE, Adapt, Move, proxied
from zaq.synth.adapter import Photographs
from zaq.synth.leaves import leaves

FEW = Flagship(synthesis=2, refine=1, images=100, reconstruct=1, polish=2, game=1)


def some(count: int) -> Photographs:
    """Dead leaves as bytes: things that lie over each other, as in photographs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        low, high = CARD.bounds()
        return Photographs(((leaves(count, CARD) - low) / (high - low) * 255).round().byte(), "here")


def adapted(cycle: float) -> tuple[float, dict[str, float], dict[str, float]]:
    """What moved photographs differ by from themselves, and the first losses and the last."""
    state, journal, photographs = state_of("residual"), Journal(), some(64)
    run_stages([Adapt(photographs=photographs, steps=15, width=8, cycle=cycle), Move(count=64)], state, journal)
    assert state.images is not None
    first, *_, last = journal.log.rows
    return float((state.images - CARD.normalised(photographs.pixels)).abs().mean()), first, last


def test_statistics_are_come_to_and_content_is_kept_by_the_way_back() -> None:
    free, kept = adapted(0.0), adapted(CYCLE)
    assert free[2]["batch_norm"] < 0.8 * free[1]["batch_norm"] and kept[2]["batch_norm"] < 0.95 * kept[1]["batch_norm"]
    assert "cycle" not in free[2] and kept[2]["cycle"] < 0.5 * kept[1]["cycle"]
    assert kept[0] < 0.5 * free[0]


def test_a_class_is_whatever_an_image_is_taken_for() -> None:
    adapt, logits = Adapt(photographs=some(1)), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    found = adapt.wanted([logits], None)
    assert found is not None and found.tolist() == [1, 0]
    assert adapt.wanted([torch.zeros(2, 3, 4, 4)], None) is None and adapt.wanted([logits, logits], None) is None


def test_they_take_the_place_of_what_is_learned_from_alone() -> None:
    """What is held out is the same to the bit: runs with and without photographs are judged by the same."""
    proxy, plain, journal = state_of("residual"), state_of("residual"), Journal()
    stages = FEW.plan(plain.task)
    moving = proxied(stages, some(80), proxy.task)
    names = ["adapt", "move", "held-out synthesis", "held-out draw", "held-out refine"]
    assert [s.name for s in moving[1:6]] == names
    assert [s.name for s in moving[7:]] == [s.name for s in stages[9:]]
    run_stages(moving[1:6], proxy, journal)
    run_stages([s for s in stages if s.name in names], plain, Journal())
    assert proxy.samples is not None and plain.samples is not None and torch.equal(proxy.samples, plain.samples)
    assert proxy.images is not None and len(proxy.images) == 100
    assert journal.notes == [
        "80 photographs are moved for the 100 images that are learned on: each is taken again, mirrored every second "
        "time"
    ]


def test_constants_of_the_synthesis_are_those_of_the_adapter() -> None:
    task = state_of("residual").task
    for cycle, wanted in ((None, CYCLE), (0.0, 0.0), (3.0, 3.0)):
        method = Flagship(synthesis=7, cycle=cycle, stage_constants={"synthesis.width": 8})
        adapt = proxied(method.plan(task), some(64), task)[1]
        assert isinstance(adapt, Adapt) and (adapt.steps, adapt.width, adapt.cycle) == (7, 8, wanted)


def test_what_cannot_be_is_a_sentence() -> None:
    task, bare = state_of("residual").task, state_of("no_batch_norm").task
    with pytest.raises(BitsError, match=r"no batch norm that remembers .* Leave --proxy out"):
        proxied(FEW.plan(bare), some(64), bare)
    with pytest.raises(DataError, match="here has 63 images, and 64 are the least"):
        proxied(FEW.plan(task), some(63), task)
    with pytest.raises(BitsError, match="-s generator=biggan is no painter"):
        proxied(Flagship(generator="biggan").plan(task), some(64), task)


@pytest.mark.parametrize("name", ["rtn", "zeroq", "ft"])
def test_no_other_method_is_handed_them(name: str) -> None:
    with pytest.raises(BitsError, match=f"--proxy goes with --method flagship alone; {name} is handed no photographs"):
        quantized_net("residual", "w4a4", METHODS[name](), card=CARD, photographs=some(64))


def test_ctrl_c_leaves_a_whole_student_that_is_marked() -> None:
    made = quantized_net("residual", "w4a4", FEW, card=CARD, photographs=some(80), progress=Impatient("adapt", 1))
    assert made.report["interrupted"] and made.report["options"]["data"] == "here"
    (note,) = (stage["note"] for stage in made.report["stages"] if stage["name"] == "adapt")
    assert note.startswith("interrupted after step 1 of 2")
    assert torch.isfinite(made.module(torch.zeros(2, *SHAPE))).all()
