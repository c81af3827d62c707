"""The generators there are, by name."""

from collections.abc import Callable
from typing import Annotated

from zaq.config.card import Card
from zaq.config.constants import named
from zaq.config.plugins import lookup
from zaq.errors import BitsError
from zaq.synth.biggan import BigGAN
from zaq.synth.generators import DCGAN, Generator
from zaq.synth.leaves import Painter

__all__ = ["GENERATORS", "GeneratorName", "generator_of", "made", "require"]

GENERATORS: dict[str, Callable[..., Generator]] = {"biggan": BigGAN, "dcgan": DCGAN, "painter": Painter}
LACKS = {"truncates": "starts from no normal numbers", "paints": "starts from no canvas"}


def generator_of(name: str) -> Callable[..., Generator]:
    """The generator class of that name: one of GENERATORS, an installed package's, or `package.module:Class`."""
    return lookup("zaq.generators", "generator", name, GENERATORS, by_path=True)


GeneratorName = Annotated[str, named("generator", generator_of)]


def made(name: str, card: Card, latent: int, width: int, classes: int | None) -> Generator:
    """A generator: its class is called with the card, the size of the latent, the width, and the number of classes or
    None.
    """
    kind = generator_of(name)
    return kind(card, width, classes) if kind is Painter else kind(card, latent, width, classes)


def require(name: str, setting: str, ability: str) -> None:
    """Raise BitsError where a setting asks a generator, by name, for what it has not: one of LACKS."""
    if not getattr(generator_of(name), ability, False):
        able = " or ".join(n for n, kind in GENERATORS.items() if getattr(kind, ability))
        raise BitsError(f"-s {setting}: the generator {name} {LACKS[ability]}; {able} does (-s generator=...).")
