"""zaq: vision models made small without their training data."""

from importlib.metadata import PackageNotFoundError, version

from zaq.api import Quantized, quantize
from zaq.config import Card, QConfig
from zaq.errors import ZaqError
from zaq.methods.flagship import Flagship
from zaq.methods.zaq import ZAQ

__all__ = ["ZAQ", "Card", "Flagship", "QConfig", "Quantized", "ZaqError", "quantize"]

try:
    __version__ = version("zaq")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0"
