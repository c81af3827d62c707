"""Generators of several networks as one, and where another's begins: GAN Cocktail (Avrahami et al. 2021).

    rooting:    each generator but the first, the root, becomes G_i' = the root, trained on what G_i draws
    averaging:  W = mean over i of the weights of G_i'

Weights of generators that were trained apart mean different things, and their average draws nothing. Those that began
as the same weights are near each other, and it draws what each of them did.

A cocktail is a generator for each network. They share all weights but what is a class's own: the tables of a painter's
batch norms, or of the embedding that a DCGAN's latent is multiplied by. So a network and one of its classes say what is
drawn. The training is in `zaq.cocktail`, the file in `generator_file`.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zaq.errors import SourceError
from zaq.synth.generators import DCGAN, Generator
from zaq.synth.leaves import Painter

__all__ = ["ARCHITECTURES", "Cocktail", "Of", "architecture", "averaged", "begun", "described", "joined", "shared"]

ARCHITECTURES: dict[str, type[Generator]] = {"dcgan": DCGAN, "painter": Painter}


@dataclass(frozen=True)
class Of:
    """The network that a generator is of."""

    name: str
    sha256: str | None


@dataclass
class Cocktail:
    """Generators that share their weights, and the network of each. `made` tells how it came about."""

    of: list[Of]
    generators: list[Generator]
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> list[int]:
        """How many classes each network has."""
        return [g.classes or 0 for g in self.generators]


def architecture(generator: Generator) -> tuple[str, dict[str, Any]]:
    """Its name in ARCHITECTURES, and its sizes: what it was made with beside card and classes.

    Raises SourceError for any other kind, and for one that knows no classes.
    """
    names = [name for name, kind in ARCHITECTURES.items() if type(generator) is kind]
    if not names:
        raise SourceError(
            f"its generator is a {type(generator).__name__}; {' and '.join(ARCHITECTURES)} can be mixed and begun with "
            "(-s generator=...). BigGAN's draws by an average of its weights over steps, and what that would be here "
            "the paper does not say."
        )
    if not generator.classes:
        raise SourceError(
            "its generator knows no classes, and those of a cocktail are told what to draw by network and class."
        )
    args, named = generator.made
    bound = inspect.signature(type(generator).__init__).bind(generator, *args, **named)
    bound.apply_defaults()
    return names[0], {k: v for k, v in bound.arguments.items() if k not in ("self", "card", "classes")}


def described(generator: Generator) -> str:
    """Architecture, sizes and images in words, the same for all that can be mixed."""
    name, sizes = architecture(generator)
    told = ", ".join(f"{k} {v}" for k, v in sizes.items() if v is not None)
    return f"a {name} ({told}) of {'x'.join(map(str, generator.card.input))} {generator.card.order} images"


def shared(generator: Generator) -> dict[str, nn.Parameter]:
    """The weights that are no class's own, by name."""
    tables = {id(m.weight) for m in generator.modules() if isinstance(m, nn.Embedding)}
    return {name: p for name, p in generator.named_parameters() if id(p) not in tables}


def begun(generator: Generator, root: Generator) -> Generator:
    """A copy of a generator, whose weights are the root's: the shared ones, and all where it has as many classes.

    A class of one network is none of another's; the tables are still a better start than random ones, as they fit the
    weights. Where they cannot be taken they begin as a new generator's do.
    """
    kind, (_, sizes) = type(generator), architecture(generator)
    made = kind(card=generator.card, classes=generator.classes, **sizes).to(generator.low.device)
    taken = dict(root.named_parameters()) if root.classes == generator.classes else shared(root)
    made.load_state_dict({**made.state_dict(), **{k: p.detach() for k, p in taken.items()}, "drawn": generator.drawn})
    return made


def averaged(generators: Sequence[Generator]) -> list[Generator]:
    """Copies, whose shared weights are the mean of all of them, and from here on one and the same. Each keeps its own
    tables.
    """
    given = [shared(g) for g in generators]
    return joined(generators, {k: torch.stack([weights[k].detach() for weights in given]).mean(0) for k in given[0]})


def joined(generators: Sequence[Generator], weights: Mapping[str, Tensor]) -> list[Generator]:
    """Copies that share these weights, by name."""
    copies = [copy.deepcopy(g) for g in generators]
    for name, like in shared(copies[0]).items():
        one = nn.Parameter(torch.empty_like(like).copy_(weights[name]))  # which lies in memory as that does
        owner, _, leaf = name.rpartition(".")
        for g in copies:
            setattr(g.get_submodule(owner), leaf, one)
    return copies
