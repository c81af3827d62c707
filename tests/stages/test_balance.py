"""BEGAN's equilibrium by its equations, and in a game."""

import pytest
from zoo import CARD, quantized_net

from zaq.errors import BitsError
from zaq.methods.zaq import ZAQ, Game
from zaq.stages.balance import Equilibrium

TINY = ZAQ(warm_up=2, rounds=6, latent=16, width=8, q_steps=1)


def test_k_and_m_follow_their_equations() -> None:
    balance = Equilibrium(gamma=1.5, rate=0.1, patience=0)
    found = balance.step(2.0, 1.0)  # easier than it may draw: look for more
    assert found["k"] == pytest.approx(0.1 * (1.5 * 2 - 1) / 2) and found["m_global"] == pytest.approx(2 + 2)
    found = balance.step(1.0, 4.0)
    assert found["k"] == 0 and found["m_global"] == pytest.approx(0.9 * 4 + 0.1 * (1 + 2.5))
    for _ in range(20):
        found = balance.step(1.0, 0.0)
    assert found["k"] == 1


def test_hard_images_are_held_gamma_times_as_hard_as_easy_ones() -> None:
    """A generator whose images differ the more the more it looks for that: k settles where they do by gamma."""
    balance = Equilibrium(gamma=1.4, rate=0.05, patience=0)
    for _ in range(300):
        balance.step(1.0, 0.5 + 3 * balance.k)
    assert balance.k == pytest.approx(0.3, abs=1e-3)


def test_it_is_over_when_m_falls_no_more() -> None:
    balance = Equilibrium(gamma=1.0, rate=0.1, patience=5)
    for i in range(30):
        balance.step(1 / (1 + i), 1 / (1 + i))
    assert balance.best and not balance.over()
    for _ in range(4):
        balance.step(9.0, 9.0)
    assert not balance.over()
    saved = balance.state_dict()
    balance.step(9.0, 9.0)
    assert balance.over() == "M_global has not fallen for 5 rounds"
    balance.load_state_dict(saved)
    assert not balance.over()


@pytest.mark.parametrize("name", ["residual", "no_batch_norm"])  # test_laboratory has one with no classes either
def test_a_game_is_balanced_whatever_the_network_has(name: str) -> None:
    method = ZAQ(**(TINY.__dict__ | {"balance": "began", "lambda_k": 10.0}))
    rows = [r for r in quantized_net(name, "w4a4", method, card=CARD).journal.log.rows if "m_global" in r]
    assert len(rows) == 6 and all(0 <= r["k"] <= 1 and r["d_easy"] > 0 for r in rows)
    assert all(r["d_hard"] == r["d_o"] for r in rows)
    assert {r["k"] for r in rows} & {0.0, 1.0}  # so fast it goes from end to end


def test_m_global_ends_a_game_and_chooses_its_state() -> None:
    """So that nothing but M can have chosen: the student of the round with the least M is the one that stays."""
    method = ZAQ(**(TINY.__dict__ | {"balance": "began", "keep": "m_global", "patience": 2, "rounds": 40,
                                     "lr_student": 1.0}))  # fmt: skip
    made = quantized_net("residual", "w4a4", method, card=CARD)
    stage = made.report["stages"][-1]
    assert stage["steps"] < 40 and "ended after step" in stage["note"] and "M_global has not fallen" in stage["note"]
    assert not [r for r in made.journal.log.rows if "held_out" in r]  # the judge looks at the chosen one alone


def test_what_there_is_no_m_for_is_a_sentence() -> None:
    for made in (ZAQ, Game):
        with pytest.raises(BitsError, match="keep=m_global: there is an M_global only with -s balance=began"):
            made(keep="m_global")
    for still in ("q_steps", "g_steps"):
        with pytest.raises(BitsError, match="holds two who play; q_steps and g_steps"):
            ZAQ(balance="began", **{still: 0})  # type: ignore[arg-type]
    with pytest.raises(BitsError, match="Did you mean 'began'"):
        ZAQ(balance="begun")
