"""Networks made by calling something: `package.module:factory`, and what `--arch` names."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from zaq.compute.random import drawing
from zaq.errors import SourceError, unknown
from zaq.ir.capture import quiet
from zaq.sources.base import Request, Source, first_line, source_of

__all__ = ["called", "found", "read_factory", "seeded"]


def read_factory(request: Request) -> Source:
    """The network that a function or class of the user's own makes, with whatever weights it gives it."""
    module, _, name = request.spec.partition(":")
    return source_of(request, name, called(request.spec, found(request.spec, module, name), request.kwargs), {})


def called(spec: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> nn.Module:
    """What a factory returns, which must be a module. The same call makes the same weights, random ones too."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in kwargs.items())
    try:
        with seeded():
            model = factory(**kwargs)
    except Exception as error:  # somebody else's code may raise anything
        raise SourceError(
            f"{spec}: the call with ({arguments}) failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"{spec}: returns {type(model).__name__}; a torch.nn.Module is expected.")
    return model


@contextmanager
def seeded() -> Iterator[None]:
    """Inside, random numbers are the same every time, and libraries' warnings of their own corners are not heard."""
    with drawing(0), quiet():
        yield


def found(spec: str, module: str, name: str) -> Callable[..., Any]:
    """What `module:name` names, installed or in the current folder. Raises SourceError if nothing."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        owner = importlib.import_module(module)
    except Exception as error:  # a module's code may raise anything
        why = f"importing {module} failed: {first_line(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            why = f"there is no module {error.name!r}, installed or in {here}"
        raise SourceError(f"{spec}: {why}.") from error
    finally:
        sys.path.remove(here)
    factory = getattr(owner, name, None)
    if not callable(factory):
        public = [n for n in dir(owner) if not n.startswith("_") and callable(getattr(owner, n))]
        raise SourceError(f"{spec}: " + unknown(f"factory of {module}", name, public))
    return factory  # type: ignore[no-any-return]
