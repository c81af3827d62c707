"""What is known of a model's input: the `.json` beside a model file, or flags."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from zaq.config.bounds import plain_json
from zaq.errors import SourceError, unknown

__all__ = ["NORMALIZATIONS", "Card"]

# name: (mean, std) of x/255, per channel
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
NORMALIZED_REACH = 3.0  # standard deviations an input of unknown normalisation is taken to span


_EXPECTED = {"tuple_type": "a list of numbers is expected", "greater_than": "it must be positive"}  # by pydantic's type
Deviation = Annotated[FiniteFloat, Field(gt=0)]


@dataclass(frozen=True)
class Card:
    """What is known of a model's input; the `.json` beside a model file, or flags.

    A model reads (x/255 - mean) / std. Without mean and std its input counts as already normalised.

    Raises SourceError for a value that can be none of that, by whichever way it comes.
    """

    input: tuple[PositiveInt, ...] = ()  # (C, H, W)
    mean: tuple[FiniteFloat, ...] | None = None  # of x/255, per channel
    std: tuple[Deviation, ...] | None = None
    resize: PositiveInt | None = None  # pixels of the shorter side
    crop: PositiveInt | None = None  # pixels a side, from the centre
    interpolation: str = "bilinear"
    task: str | None = None
    classes: PositiveInt | None = None
    class_names: tuple[str, ...] = ()  # a run keeps them with its interface
    decode: dict[str, Any] | None = None  # of a detector: how boxes are read off its outputs (`zaq.evaluate.boxes`)

    @model_validator(mode="wrap")
    @classmethod
    def _as_a_sentence(cls, values: Any, check: Any) -> Any:
        try:
            return check(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise SourceError(
                f"card: {where} is {first['input']!r}; {_EXPECTED.get(first['type'], first['msg'])}."
            ) from error

    def __post_init__(self) -> None:
        channels = self.input[0] if self.input else None
        if (self.mean is None) != (self.std is None):
            raise SourceError("card: mean and std come together; one of them is missing.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and channels is not None and len(values) != channels:
                raise SourceError(f"card: {name} has {len(values)} values, the input {channels} channels.")
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise SourceError(
                "card: " + unknown("interpolation", self.interpolation, ["bicubic", "bilinear", "nearest"])
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Card":
        """From a card's fields; those it does not know are somebody else's and are left alone."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known and not (k == "input" and v is None)})

    @classmethod
    def beside(cls, model: Path, known: dict[str, Any] | None = None) -> "Card":
        """The card of the same name beside a model file, if there is one, over what is `known` without it."""
        path = model.with_suffix(".json")
        if not path.is_file():
            return cls.from_dict(known or {})
        try:
            values = plain_json(path.read_text())
            if not isinstance(values, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise SourceError(f"{path}: the card is not readable as JSON ({error}).") from error
        try:
            return cls.from_dict({**(known or {}), **values})
        except SourceError as error:
            raise SourceError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Its fields but `class_names`; `decode` only where there is one, so that other cards, and their hashes, stay
        what they were.
        """
        return {k: v for k, v in asdict(self).items() if k != "class_names" and (k != "decode" or v is not None)}

    def override(self, **values: Any) -> "Card":
        """This card with the values that are not None put in their place."""
        return replace(self, **{k: v for k, v in values.items() if v is not None})

    @property
    def knows_pixels(self) -> bool:
        """Whether mean and std are known, which say where pixels lie; else the input counts as already normalised."""
        return self.mean is not None

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest value a pixel can take at the model's input, each (C, 1, 1)."""
        channels = self.input[0]
        if self.mean is None or self.std is None:
            reach = torch.full((channels, 1, 1), NORMALIZED_REACH)
            return -reach, reach
        mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
        return (0 - mean) / std, (1 - mean) / std
