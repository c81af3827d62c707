"""zaq: vision models made small without their training data."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zaq.api import load, quantize
    from zaq.config.bits import QConfig
    from zaq.config.card import Card
    from zaq.errors import ZaqError
    from zaq.methods.flagship import Flagship
    from zaq.methods.zaq import ZAQ
    from zaq.quantized import Quantized

__all__ = ["ZAQ", "Card", "Flagship", "QConfig", "Quantized", "ZaqError", "load", "quantize"]

try:
    __version__ = version("zaq")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0"

HOMES = {
    "ZAQ": "methods.zaq", "Card": "config.card", "Flagship": "methods.flagship", "QConfig": "config.bits",
    "Quantized": "quantized", "ZaqError": "errors",
    "load": "api", "quantize": "api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first asked for: `zaq --help` need not wait for torch."""
    if name not in HOMES:
        raise AttributeError(f"module 'zaq' has no attribute {name!r}")
    return getattr(import_module(f"zaq.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, and no module that something happened to import."""
    return __all__
