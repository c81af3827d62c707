"""Methods, one paper a file: a frozen dataclass of the paper's constants whose call is the algorithm."""

from collections.abc import Callable
from typing import Any

from zaq.methods.job import Job
from zaq.methods.zaq import ZAQ

__all__ = ["METHODS", "Job"]

METHODS: dict[str, Callable[..., Any]] = {"zaq": ZAQ}
