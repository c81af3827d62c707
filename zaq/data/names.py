"""Which class of a data set is which of the model's, by their names.

The model's names, in their order, stand as `names` among its decoding constants, or in that *.names file of the data
set that has as many lines as the model has classes. The data set's are those of its other *.names file, or of
classes.txt. A class may have several names, with commas: `tvmonitor, tv`. Case, spaces and hyphens do not count.
"""

import re
from pathlib import Path

from zaq.config.bounds import plain_text
from zaq.config.card import Card
from zaq.errors import DataError

__all__ = ["class_numbers"]

# What VOC and COCO call differently.
ALIASES = ({"aeroplane", "airplane"}, {"motorbike", "motorcycle"}, {"sofa", "couch"}, {"tvmonitor", "tv"})


def class_numbers(root: Path, card: Card) -> dict[int, int] | None:
    """Numbers of the data set's classes -> numbers of the model's; classes that the model does not know are left out.

    None where nothing is named, or one list alone and it fits: numbers are the model's then.
    Raises DataError where names do not say which class is which.
    """
    places = sorted(p for p in [*root.glob("*.names"), *root.glob("classes.txt")] if p.is_file())
    files = {p: _lines(p) for p in places}
    own = (card.decode or {}).get("names")
    if own is not None and not (isinstance(own, list) and own and all(isinstance(name, str) for name in own)):
        raise DataError(f"decode: names must be a list of the model's classes in order, not {own!r}.")
    if own and card.classes not in (None, len(own)):
        raise DataError(
            f"decode: {len(own)} names for a model of {card.classes} classes; one each is needed, in order."
        )
    classes = len(own) if own else card.classes
    fitting = [p for p, lines in files.items() if classes is None or len(lines) == classes]
    if not files or (own is None and len(files) == 1 and fitting):
        return None
    others = [p for p in files if own or p not in fitting[:1]]
    if (own is None and len(fitting) != 1) or len(others) != 1:
        raise DataError(
            f"{root}: {', '.join(f'{p.name} with {len(lines)} classes' for p, lines in files.items())} for a model of "
            f"{classes} do not "
            f'say which class is which; put the model\'s names in order into the --decode file, as "names".'
        )
    model = [_spellings(name) for name in own or files[fitting[0]]]
    theirs = [_spellings(name) for name in files[others[0]]]
    found = {i: j for i, name in enumerate(theirs) for j, known in enumerate(model) if name & known}
    if not found:
        raise DataError(
            f"{others[0]}: names no class that the model knows, as "
            f"{', '.join(map(str, (own or files[fitting[0]])[:3]))}."
        )
    return found


def _lines(path: Path) -> list[str]:
    try:
        return plain_text(path).strip().splitlines()
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as text ({error}).") from error


def _spellings(names: str) -> set[str]:
    """Every name of a class, as they are compared."""
    found = {re.sub(r"[\W_]+", "", name.lower()) for name in str(names).split(",")}
    return found.union(*(a for a in ALIASES if a & found))
