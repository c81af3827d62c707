"""What the constants of methods and stages may be. A range stands where a constant is declared, as its type:

    drop: Share = 0.5

and is checked here alone, for `-s` as for Python. A constant is a field that text can set: a number, a truth, a word,
or some numbers; other fields of a dataclass are nobody's constants.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from zaq.errors import BitsError, unknown

__all__ = [
    "Amount", "Count", "Factor", "OneOrMore", "Positive", "Share", "Steps", "check_constant", "check_constants",
    "in_words", "named", "plain_type",
]  # fmt: skip

MANY = 10**9  # of anything: what is more is a slip, and fills the memory

Count = Annotated[int, Field(ge=0, le=MANY, description=f"a whole number from 0 to {MANY}")]
OneOrMore = Annotated[int, Field(ge=1, le=MANY, description=f"a whole number from 1 to {MANY}")]
Steps = Annotated[int, Field(ge=-1, le=MANY, description=f"a whole number from -1 (set by the effort) to {MANY}")]
Amount = Annotated[float, Field(ge=0, description="a number, 0 or more")]  # a weight of a loss, a rate, a way
Positive = Annotated[float, Field(gt=0, description="a number above 0")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Factor = Annotated[float, Field(gt=0, lt=1, description="a number above 0 and below 1")]
Container = Mapping[str, Any] | Sequence[str]
PLAIN = (int, float, bool, str)
WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def named(what: str, known: Container | Callable[[str], object]) -> AfterValidator:
    """What makes the type of a word, as Annotated[str, named(...)]: it is one of those known, or one that `known`
    finds, which raises BitsError for any other.
    """

    def check(name: str) -> str:
        if callable(known):
            known(name)
        elif name not in known:
            raise BitsError(f"{what}: " + unknown(what, name, known))
        return name

    return AfterValidator(check)


def check_constants(owner: Any) -> None:
    """Raise BitsError for a field of a dataclass whose value is not in its range, naming field, value and range."""
    for name, hint in _constants(owner.__class__).items():
        check_constant(name, getattr(owner, name), hint)


def check_constant(name: str, value: Any, hint: Any) -> None:
    """The same of one constant; `hint`: the type as it was declared."""
    try:
        _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise BitsError(f"{name} is {value!r:.80}; {in_words(hint)} is expected.") from error


def plain_type(hint: Any) -> tuple[type | None, bool]:
    """What a constant of that type is made of (None where text cannot set it): int, float, bool, str or tuple; and
    whether it may be None.
    """
    hint = _bare(hint)
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    others = [_bare(k) for k in kinds if k is not types.NoneType]
    kind = (typing.get_origin(others[0]) or others[0]) if len(others) == 1 else None
    return kind if kind in (*PLAIN, tuple) else None, types.NoneType in kinds


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


@cache
def _constants(owner: type) -> dict[str, Any]:
    """The constants of a dataclass, and their types as they were declared."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(owner) if plain_type(hints[f.name])[0] is not None}


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[hint, BeforeValidator(_as_tuple)], config=ConfigDict(strict=True, allow_inf_nan=False))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def in_words(hint: Any) -> str:
    """The range in words: what its type says of itself, else what kind it is."""
    kind, optional = plain_type(hint)
    words = _description(hint) or WORDS.get(kind, "a number")
    return (f"some numbers, each {words}," if kind is tuple else words) + (" or none" if optional else "")


def _description(hint: Any) -> str:
    own = (getattr(m, "description", None) for m in getattr(hint, "__metadata__", ()))
    inner = (_description(a) for a in typing.get_args(hint))
    return next(filter(None, (*own, *inner)), "")
