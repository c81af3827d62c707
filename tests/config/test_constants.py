"""Every constant of every method and stage has a range, which holds for `-s` and for Python alike."""

import dataclasses
import math
from typing import Any

import pytest

from zaq.cli.options import method_of
from zaq.config.constants import check_constants, plain_type
from zaq.engine.stage import Stage
from zaq.errors import UserError
from zaq.methods import METHODS, Method
from zaq.methods.flagship import Flagship
from zaq.methods.zaq import ZAQ
from zaq.methods.zeroq import ZeroQ
from zaq.stages.reconstruct import Reconstruct


def numbers(owner: type[Method] | type[Stage]) -> list[str]:
    """The constants of a dataclass that are one number each."""
    import typing

    hints = typing.get_type_hints(owner, include_extras=True)
    return [f.name for f in dataclasses.fields(owner) if plain_type(hints[f.name])[0] in (int, float)]


CONSTANTS = [(name, field) for name, method in METHODS.items() for field in numbers(method)]
CONSTANTS += [
    (name, f"{part.__dataclass_fields__['name'].default}.{field}".replace(" ", "-"))
    for name, method in METHODS.items()
    for part in method.parts
    if part.__dataclass_fields__["name"].default
    for field in numbers(part)
]


@pytest.mark.parametrize(("method", "constant"), CONSTANTS)
def test_no_number_may_be_anything(method: str, constant: str) -> None:
    """No constant takes what is no number, or what is below any that has a meaning."""
    for text in ("nan", "inf", "-inf", "-2", "1e999", "-1e300"):
        with pytest.raises(UserError, match=rf"^-s {constant}={text}: "):
            method_of(method, (f"{constant}={text}",))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("drop=2", "drop is 2.0; a number from 0 to 1 is expected"),
        ("reconstruct=-1", "reconstruct is -1; a whole number from 0 to 1000000000 or none is expected"),
        ("reconstruct.drop=1.5", "drop is 1.5; a number from 0 to 1 is expected"),
        ("reconstruct.beta=20,-1", "some numbers, each a number above 0, is expected"),
        ("reconstruct.beta=20", "beta is (20.0,)"),
        ("calibrate.observer=foo", "unknown observer 'foo'. There is: ema"),
        ("images=0", "images is 0; a whole number from 1"),
        ("squant=maybe", "'maybe' is no bool"),
        ("stage_constants=1", "unknown setting of flagship"),
    ],
)
def test_a_value_out_of_its_range_is_named_with_it(setting: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        method_of("flagship", (setting,))
    assert f"-s {setting}: " in str(caught.value) and told in str(caught.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Flagship(drop=2.0), "drop is 2.0"),
        (lambda: Flagship(game=True), "game is True; a whole number"),
        (lambda: Flagship(travel=math.nan), "travel is nan; a number, 0 or more"),
        (lambda: ZAQ(relation="crn"), "Did you mean 'crm'?"),
        (lambda: ZAQ(generator="gan"), "Did you mean 'dcgan'?"),
        (lambda: ZAQ(milestones=(0.5, 2.0)), "milestones is"),
        (lambda: ZeroQ(observer="foo"), "unknown observer"),
        (lambda: Reconstruct(warm_up=-0.1), "warm_up is -0.1"),
        (lambda: METHODS["gdfq"](momentum=0.0), "momentum is 0.0; a number above 0 and below 1"),  # type: ignore[call-arg]
    ],
)
def test_the_same_in_python(make: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert told in str(caught.value)


def test_what_was_right_stays_so() -> None:
    for method in METHODS.values():
        check_constants(method())
    assert method_of("zaq", ("milestones=0.5,0.75", "alpha=0", "rounds=none")).milestones == (0.5, 0.75)
    assert method_of("flagship", ("reconstruct=0", "drop=1", "drop=0")).drop == 0
    check_constants(ZAQ(milestones=[0.5], rounds=3))  # type: ignore[arg-type]  # a list does as well


@dataclasses.dataclass(frozen=True)
class Own(Method):
    """A method of somebody's own, which leaves out what is done at its making."""

    batches: int = 4

    def __post_init__(self) -> None:
        pass


def test_a_method_of_ones_own_is_checked_before_it_runs() -> None:
    with pytest.raises(UserError, match=r"batches is nan; a whole number is expected"):
        Own(batches=math.nan).plan(None)  # type: ignore[arg-type]
