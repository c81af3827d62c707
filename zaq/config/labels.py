"""Names of classes out of a file: one a line, a JSON list, or a JSON object of number and name."""

from pathlib import Path
from typing import Any

from zaq.config.bounds import plain_json, plain_text
from zaq.errors import SourceError

__all__ = ["labels_text", "read_labels"]


def read_labels(path: Path) -> tuple[str, ...]:
    """The names in order: `cat` and `dog` on a line each, `["cat", "dog"]`, or `{"0": "cat", "1": "dog"}`.

    keras' `{"0": ["n01440764", "tench"]}` is read too: the last word of an entry is its name.
    Raises SourceError for a file that is missing, no text, empty, or of another form.
    """
    try:
        text = plain_text(path).strip()
        if not text:
            raise ValueError("it is empty")
        if "\0" in text:
            raise ValueError("it is no text")
        names = _listed(plain_json(text)) if text[0] in "[{" else text.splitlines()
        if blank := [i for i, name in enumerate(names) if not name.strip()]:
            raise ValueError(f"class {blank[0]} has no name")
    except ValueError as error:
        raise SourceError(
            f"--labels {path}: cannot be read ({error}); a name a line is expected, or JSON: a list of names, or an "
            'object as {"0": "cat", "1": "dog"}.'
        ) from error
    return tuple(name.strip() for name in names)


def labels_text(names: tuple[str, ...]) -> str:
    """Names as `read_labels` reads them, one a line."""
    return "".join(" ".join(name.split()) + "\n" for name in names)


def _listed(value: Any) -> list[str]:
    """The names of a JSON list, or of an object whose keys are the numbers from 0 on."""
    if isinstance(value, dict):
        if missing := [i for i in range(len(value)) if str(i) not in value]:
            raise ValueError(f"it has {len(value)} entries, and none for class {missing[0]}")
        value = [value[str(i)] for i in range(len(value))]
    names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in value]
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{wrong[0]!r:.40} is no name")
    if not names:
        raise ValueError("it names no class")
    return names
