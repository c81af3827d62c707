"""Methods, generators, observers, targets and placements of the user's own, by name.

An installed package offers them by entry points, `[options.entry_points] zaq.methods = mine = my_package.mine:Mine`; a
name with a colon, `my_package.mine:Mine`, is imported as it stands where `by_path` allows that: only for what comes
from the command line or from Python, never for what is read out of a file. This is the one file that imports by name.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

from zaq.errors import BitsError, unknown

__all__ = ["lookup", "names"]

T = TypeVar("T")


def names(group: str) -> list[str]:
    """What installed packages offer in a group of entry points; nothing is imported."""
    return sorted(point.name for point in entry_points(group=group))


def lookup(group: str, what: str, name: str, known: Mapping[str, T], by_path: bool = False) -> T:
    """What `name` stands for: one of ours (`known`), or an installed package's, or `package.module:Class`.

    Raises BitsError for a name that nobody offers, with the near one, and for one that cannot be imported.
    """
    if name in known:
        return known[name]
    try:
        for point in entry_points(group=group, name=name):
            found: T = point.load()
            return found
        module, colon, attribute = name.partition(":")
        if by_path and colon:
            value: T = getattr(import_module(module), attribute)
            return value
    except Exception as error:  # a module's code may raise anything
        raise BitsError(f"{what} {name}: cannot be imported ({type(error).__name__}: {error}).") from error
    path = f" Or write package.module:Class for a {what} of your own." if by_path else ""
    raise BitsError(f"{what}: " + unknown(what, name, {*known, *names(group)}) + path)
