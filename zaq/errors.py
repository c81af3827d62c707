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
    └── Interrupted        Ctrl-C; exit code 130
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "STOPPED",
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
    "install",
    "unknown",
]

STOPPED = 130  # 128 and the number of SIGINT, as shells count


class ZaqError(Exception):
    """Whatever zaq has to say against a call or a run; `exit_code` is the process's."""

    exit_code = 1


class UserError(ZaqError):
    """The call has to change."""

    exit_code = 2


class BitsError(UserError):
    """A bit width, a method or an option that does not exist."""


class SourceError(UserError):
    """No model where one was expected, or one that cannot be used."""


class TraceError(UserError):
    """A model whose graph cannot be captured."""


class DataError(UserError):
    """A data set that is not what it was said to be."""


class OutputError(UserError):
    """A place that cannot be written."""


class RunError(ZaqError):
    """The call was right, the run was not."""


class TrainingError(RunError):
    """A student that training has broken."""


class Interrupted(RunError):
    """Ctrl-C; what was finished is kept."""

    exit_code = STOPPED


def install(extra: str) -> str:
    """How to get the packages of an extra. zaq lies in no index, so that its name alone finds nothing."""
    return f"pip install '.[{extra}]' in zaq's own folder"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a registry: says what there is, and which one is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} There is: {', '.join(names)}."
