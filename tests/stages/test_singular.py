"""The watch: singular values against torch's own, and its alarm in a game that is about to collapse."""

import pytest
import torch
from torch import nn
from zoo import CARD, quantized_net

from zaq.engine.stage import Diverged
from zaq.methods.gdfq import GDFQ
from zaq.methods.zaq import ZAQ
from zaq.report.page import render
from zaq.stages.singular import SIGMAS, Watch, top_singular_values

TINY = {"rounds": 3, "warm_up": 2, "latent": 16, "width": 8}


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (5, 40), (8, 1, 3, 3), (2, 9), (7, 1)])
def test_power_iteration_finds_the_largest(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, basis = torch.randn(shape), torch.randn(shape[0], 3)
    for _ in range(300):
        values, basis = top_singular_values(weight, basis)
    wanted = torch.linalg.svdvals(weight.flatten(1))[:3]
    torch.testing.assert_close(values, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(len(wanted)), rtol=0, atol=1e-5)


def test_it_follows_a_weight_that_moves_and_tells_a_jump() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 4)
    with torch.no_grad():
        net.weight.copy_(torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5]))[:, [0, 1, 2, 3, 0, 0]] * torch.ones(6))
    before = torch.get_rng_state()
    watch = Watch({"generator": net}, 2.0, steps=10)
    assert torch.equal(before, torch.get_rng_state())
    for i in range(40):
        found = watch.step(i)
        with torch.no_grad():
            net.weight.mul_(1.02)  # slowly: no jump
    wanted = torch.linalg.svdvals(net.weight.detach() / 1.02)[:3].tolist()
    assert [found[f"{which}generator weight"] for which in SIGMAS] == pytest.approx(wanted, rel=1e-3)
    saved = watch.state_dict()
    with torch.no_grad():
        net.weight.mul_(3)
    with pytest.raises(Diverged, match=r"the largest singular value of generator weight jumped from 1\d.* to 4\d"):
        watch.step(41)
    with torch.no_grad():
        net.weight.div_(3)
    watch.load_state_dict(saved)
    assert watch.step(42)


def test_a_jump_rolls_a_game_back_before_its_loss_is_no_number() -> None:
    """A step a hundred times too large; and the report has the values, step by step, and a picture of them."""
    method = ZAQ(**TINY, generator="biggan", lr_generator=1.0)  # type: ignore[arg-type]
    quantized = quantized_net("residual", "w4a4", method, card=CARD)
    note = quantized.report["stages"][-1]["note"]
    assert "went back" in note or "stopped at step" in note
    assert "largest singular value of generator" in note and "NaN" not in note

    calm = quantized_net("residual", "w4a4", ZAQ(**TINY, generator="biggan"), card=CARD)  # type: ignore[arg-type]
    assert "singular" not in calm.report["stages"][-1]["note"]
    rows = [r for r in calm.journal.log.rows if f"{SIGMAS[0]}generator last.weight" in r]
    assert len(rows) == 3
    assert any(k.startswith(f"{SIGMAS[2]}student ") for k in rows[0])
    assert "largest singular values of the student" in render(calm.report, calm.journal.log.rows, None, CARD)


def test_it_is_off_unless_asked_for() -> None:
    for method, watched in ((ZAQ(**TINY), False), (ZAQ(**TINY, watch=3.0), True)):  # type: ignore[arg-type]
        log = quantized_net("no_batch_norm", "w8a8", method, card=CARD).journal.log.rows
        assert any(k.startswith(SIGMAS) for row in log for k in row) == watched
    log = quantized_net("residual", "w4a4", GDFQ(epochs=2, iterations=3, latent=16, width=8, batch=8, warm_up=0.5,
                                                 generator="biggan"), card=CARD).journal.log.rows  # fmt: skip
    assert any(k.startswith(SIGMAS) for row in log for k in row if row["stage"] == "gdfq")
