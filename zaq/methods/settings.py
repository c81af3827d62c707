"""What can be set of a method, for people to read: name, range, default, and what its author wrote beside it."""

import dataclasses
import inspect
import io
import tokenize
import typing
from dataclasses import dataclass
from typing import Any

from zaq.config.constants import in_words, plain_type
from zaq.methods.base import Method, key_of

__all__ = ["Setting", "settings_of"]

OF_ALL = ("name", "held_out", "stage_constants")  # fields that are no constants


@dataclass(frozen=True)
class Setting:
    """A constant: as `-s` spells it, the values it may have, its default, and its unit and sense in a few words."""

    name: str
    values: str
    default: Any
    about: str


def settings_of(kind: type[Method]) -> list[Setting]:
    """The constants of a method, and behind them those of its stages, as `stage.constant`."""
    found = _fields(kind, "")
    for part in kind.parts:
        name = next(f.default for f in dataclasses.fields(part) if f.name == "name")
        if name:  # stages without a name of their own have their constants from the method
            found += _fields(part, f"{key_of(str(name))}.")
    return found


def _fields(owner: Any, prefix: str) -> list[Setting]:
    hints, about = typing.get_type_hints(owner, include_extras=True), _comments(owner)
    return [
        Setting(prefix + f.name, in_words(hints[f.name]).rstrip(","), f.default, about.get(f.name, ""))
        for f in dataclasses.fields(owner)
        if f.name not in OF_ALL and plain_type(hints[f.name])[0] is not None
    ]


def _comments(owner: Any) -> dict[str, str]:
    """The comments that stand beside the fields of a class and of those it is made from, by field."""
    found: dict[str, str] = {}
    for kind in reversed(owner.__mro__[:-1]):
        try:
            lines = io.StringIO(inspect.getsource(kind)).readline
            tokens = list(tokenize.generate_tokens(lines))
        except (OSError, TypeError, tokenize.TokenError, IndentationError):
            continue  # a class that was not written into a file
        for token in tokens:
            name, colon, _ = token.line.strip().partition(":")
            if token.type == tokenize.COMMENT and colon and name.isidentifier():
                found[name] = token.string.lstrip("# ")
    return found
