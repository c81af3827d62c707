"""What can go wrong, as sentences a user can act on.

ZaqError
├── UserError          exit code 2: the call has to change
│   ├── BitsError          a bit width or an option that does not exist
│   ├── SourceError        no model where one was expected, or one that cannot be used
│   ├── TraceError         a model whose graph cannot be captured
│   ├── DataError          a data set that is not what it was said to be
│   └── OutputError        a place that cannot be written
└── RunError           exit code 1: the call was right, the run was not
    ├── TrainingError      losses that stay NaN
    └── Interrupted        Ctrl-C
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BitsError",
    "DataError",
    "Interrupted",
    "OutputError",
    "RunError",
    "SourceError",
    "TraceError",
    "TrainingError",
    "UserError",
    "ZaqError",
    "unknown",
]


class ZaqError(Exception):
    exit_code = 1


class UserError(ZaqError):
    exit_code = 2


class BitsError(UserError):
    pass


class SourceError(UserError):
    pass


class TraceError(UserError):
    pass


class DataError(UserError):
    pass


class OutputError(UserError):
    pass


class RunError(ZaqError):
    pass


class TrainingError(RunError):
    pass


class Interrupted(RunError):
    pass


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a registry: says what there is, and which one is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} There is: {', '.join(names)}."
