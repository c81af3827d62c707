"""What is known of a model's input: the `.json` beside a model file, or flags."""

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from zaq.compute.devices import CPU
from zaq.config.bounds import ELEMENTS, plain_json, plain_text
from zaq.errors import SourceError, unknown

__all__ = ["Card"]

NORMALIZED_REACH = 3.0  # standard deviations an input of unknown normalisation is taken to span

# Of pixels from 0 to 1: what photographs have, and where a card's mean and std are those of a data set. Others (pixels
# from 0 to 255, a mean taken off without a division) say nothing of the data.
PHOTOGRAPHS = (0.45, 0.25)
OF_DATA = ((0.1, 0.7), (0.15, 1 / 3))

_EXPECTED = {"tuple_type": "a list of numbers is expected", "greater_than": "it must be positive"}  # by pydantic's type
Deviation = Annotated[FiniteFloat, Field(gt=0)]
Side = Annotated[PositiveInt, Field(le=2**16)]  # pixels of an image


@dataclass(frozen=True)
class Card:
    """What is known of a model's input; the `.json` beside a model file, or flags.

    A model reads (x/255 - mean) / std. Without mean and std its input counts as already normalised. A mean or std of
    one value is for all channels.

    Raises SourceError for a value that can be none of that, by whichever way it comes.
    """

    input: tuple[PositiveInt, ...] = ()  # (C, H, W)
    mean: tuple[FiniteFloat, ...] | None = None  # of x/255, per channel
    std: tuple[Deviation, ...] | None = None
    resize: Side | None = None  # pixels of the shorter side
    crop: Side | None = None  # pixels a side, from the centre
    interpolation: str = "bilinear"
    task: str | None = None
    classes: PositiveInt | None = None
    order: Literal["rgb", "bgr"] = "rgb"  # of colours, as the model reads them; mean and std have the same
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
        if math.prod(self.input) > ELEMENTS or self.input[:1] > (2**16,):
            raise SourceError(f"card: input is {self.input}; of so many values no model takes an image.")
        if self.class_names and self.classes not in (None, len(self.class_names)):
            raise SourceError(
                f"card: {len(self.class_names)} names for {self.classes} classes; one each is needed, in order "
                "(class_names, or --labels)."
            )
        if not all(name.strip() for name in self.class_names):
            raise SourceError("card: class_names has an empty name; every class needs one.")
        channels = self.input[0] if self.input else None
        if (self.mean is None) != (self.std is None):
            raise SourceError("card: mean and std come together; one of them is missing.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and channels is not None and len(values) == 1:
                values = values * channels
                object.__setattr__(self, name, values)
            if values is not None and channels is not None and len(values) != channels:
                raise SourceError(f"card: {name} has {len(values)} values, the input {channels} channels.")
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise SourceError(
                "card: " + unknown("interpolation", self.interpolation, ["bicubic", "bilinear", "nearest"])
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Card":
        """From a card's fields; those it does not know are somebody else's and are left alone."""
        if not isinstance(values, dict):
            raise SourceError(f"card: {values!r:.60} is no object of fields and their values.")
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known and not (k == "input" and v is None)})

    @classmethod
    def beside(cls, model: Path, known: dict[str, Any] | None = None) -> "Card":
        """The card of the same name beside a model file, if there is one, over what is `known` without it."""
        path = model.with_suffix(".json")
        if not path.exists():
            return cls.from_dict(known or {})
        try:
            values = plain_json(plain_text(path))
            if not isinstance(values, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise SourceError(f"{path}: the card is not readable as JSON ({error}).") from error
        try:
            return cls.from_dict({**(known or {}), **values})
        except SourceError as error:
            raise SourceError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Its fields but `class_names`; `decode` and `order` only where they say something, so that other cards, and
        their hashes, stay what they were."""
        unsaid = {"decode": None, "order": "rgb"}
        fields = {k: v for k, v in asdict(self).items() if k != "class_names"}
        return {k: v for k, v in fields.items() if k not in unsaid or v != unsaid[k]}

    def override(self, **values: Any) -> "Card":
        """This card with the values that are not None put in their place."""
        return replace(self, **{k: v for k, v in values.items() if v is not None})

    def of_bytes(self) -> "Card":
        """This card for an input that is the pixels themselves, 0 to 255: its mean and std are the network's matter."""
        return replace(self, mean=(0.0,) * self.input[0], std=(1 / 255,) * self.input[0])

    @property
    def knows_pixels(self) -> bool:
        """Whether mean and std are known, which say where pixels lie; else the input counts as already normalised."""
        return self.mean is not None

    def bounds(self, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        """The least and the greatest value a pixel can take at the model's input, each (C, 1, 1), and with as many
        dimensions as the input has.
        """
        if self.mean is None or self.std is None:
            reach = torch.full(self._channels, NORMALIZED_REACH)
            return (-reach).to(device), reach.to(device)
        mean, std = torch.tensor(self.mean).view(self._channels), torch.tensor(self.std).view(self._channels)
        return ((0 - mean) / std).to(device), ((1 - mean) / std).to(device)

    @property
    def _channels(self) -> tuple[int, ...]:
        """The shape of what has a value for each channel."""
        return (self.input[0], *[1] * (len(self.input) - 1))

    def spread(self) -> tuple[Tensor, Tensor]:
        """What photographs have at the model's input: deviation and mean, each as `bounds`.

        1 and 0 where mean and std are a data set's, or unknown: that is what they are for. Else those of photographs'
        pixels, in the model's units.
        """
        ones = torch.ones(self._channels)
        if self.mean is None or self.std is None or self.of_data:
            return ones, 0 * ones
        mean, std = torch.tensor(self.mean).view(self._channels), torch.tensor(self.std).view(self._channels)
        return PHOTOGRAPHS[1] / std * ones, (PHOTOGRAPHS[0] - mean) / std * ones

    @property
    def of_data(self) -> bool:
        """Whether mean and std are those of a data set, or unknown; not, where they only say which pixels enter."""
        given = (self.mean or (), self.std or ())
        return all(low <= v <= high for values, (low, high) in zip(given, OF_DATA, strict=True) for v in values)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Bytes (N, C, H, W), their colours in this card's order, as the model reads them: (x/255 - mean) / std."""
        mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def images(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) as the model reads them out of such of mean 0 and deviation 1. All that is drawn or moved
        is so in the units of z, whatever pixels a model reads."""
        scale, shift = self.spread()
        return z if bool((scale == 1).all() & (shift == 0).all()) else z * scale.to(z.device) + shift.to(z.device)

    def standard(self, images: Tensor) -> Tensor:
        """The inverse: images (N, C, H, W) as the model reads them, of mean 0 and deviation 1."""
        scale, shift = self.spread()
        return (
            images
            if bool((scale == 1).all() & (shift == 0).all())
            else (images - shift.to(images.device)) / scale.to(images.device)
        )

    def in_bounds(self, images: Tensor) -> Tensor:
        """Images as a file stores them: no pixel beyond what one can be."""
        low, high = self.bounds(images.device)
        return images.maximum(low).minimum(high)
