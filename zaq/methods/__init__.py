"""Methods, one paper a file: a frozen dataclass of the paper's constants whose call is the algorithm."""

from collections.abc import Callable
from typing import Any

from zaq.methods.aciq import ACIQ
from zaq.methods.deepinversion import DeepInversion
from zaq.methods.dfq import DFQ
from zaq.methods.flagship import Flagship
from zaq.methods.ft import FineTune
from zaq.methods.gdfq import GDFQ
from zaq.methods.job import Job
from zaq.methods.rtn import RTN
from zaq.methods.zaq import ZAQ
from zaq.methods.zeroq import ZeroQ

__all__ = ["METHODS", "Job", "reads_data"]

METHODS: dict[str, Callable[..., Any]] = {
    "flagship": Flagship,
    "rtn": RTN,
    "dfq": DFQ,
    "aciq": ACIQ,
    "zeroq": ZeroQ,
    "deepinversion": DeepInversion,
    "gdfq": GDFQ,
    "zaq": ZAQ,
    "ft": FineTune,
}


def reads_data(method: Any) -> bool:
    """Whether a method is called with real images beside its job. One is: fine-tuning, the reference line."""
    return bool(getattr(method, "reads_data", False))
