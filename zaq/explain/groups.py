"""Concepts above single classes, where a data set is known for them, or where a user says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from zaq.config.bounds import plain_json, plain_text
from zaq.errors import DataError

__all__ = ["CIFAR10", "CIFAR100", "groups_of"]

# Of CIFAR-10's ten classes.
CIFAR10 = {"vehicle": (0, 1, 8, 9), "animal": (2, 3, 4, 5, 6, 7)}
# The twenty super-classes of CIFAR-100 (Krizhevsky 2009), by the numbers of their five classes.
CIFAR100 = {
    "aquatic mammals": (4, 30, 55, 72, 95),
    "fish": (1, 32, 67, 73, 91),
    "flowers": (54, 62, 70, 82, 92),
    "food containers": (9, 10, 16, 28, 61),
    "fruit and vegetables": (0, 51, 53, 57, 83),
    "household electrical devices": (22, 39, 40, 86, 87),
    "household furniture": (5, 20, 25, 84, 94),
    "insects": (6, 7, 14, 18, 24),
    "large carnivores": (3, 42, 43, 88, 97),
    "large man-made outdoor things": (12, 17, 37, 68, 76),
    "large natural outdoor scenes": (23, 33, 49, 60, 71),
    "large omnivores and herbivores": (15, 19, 21, 31, 38),
    "medium-sized mammals": (34, 63, 64, 66, 75),
    "non-insect invertebrates": (26, 45, 77, 79, 99),
    "people": (2, 11, 35, 46, 98),
    "reptiles": (27, 29, 44, 78, 93),
    "small mammals": (36, 50, 65, 74, 80),
    "trees": (47, 52, 56, 59, 96),
    "vehicles 1": (8, 13, 48, 58, 90),
    "vehicles 2": (41, 69, 81, 85, 89),
}
Groups = Mapping[str, tuple[int, ...]]
KNOWN: Mapping[str, Groups] = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def groups_of(kind: str, path: Path | None, names: Sequence[str]) -> Groups:
    """Groups of classes by their names: those of a JSON file, {"pet": ["cat", "dog"]} or {"pet": [3, 5]}; else those
    that the kind of data set is known for.

    names: of the classes, in order. Raises DataError for a file that says no such thing.
    """
    if path is None:
        return KNOWN.get(kind, {})
    try:
        found = plain_json(plain_text(path))
        if not isinstance(found, dict) or not all(isinstance(members, list) and members for members in found.values()):
            raise ValueError('it is not of the form {"pet": ["cat", "dog"]}')
    except ValueError as error:
        raise DataError(f"--groups {path}: is no JSON object of lists of classes ({error}).") from error
    return {str(group): tuple(_number(path, member, names) for member in members) for group, members in found.items()}


def _number(path: Path, member: object, names: Sequence[str]) -> int:
    if isinstance(member, str) and member in names:
        return list(names).index(member)
    if isinstance(member, int) and not isinstance(member, bool) and 0 <= member < len(names):
        return member
    raise DataError(f"--groups {path}: {member!r} is no class; there are {len(names)}, as {', '.join(names[:3])}.")
