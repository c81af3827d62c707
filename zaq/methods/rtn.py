"""Round to nearest: the naive baseline ("RQ" in ZAQ's tables), which every other method has to beat."""

from dataclasses import dataclass
from typing import ClassVar

from zaq.config.constants import OneOrMore
from zaq.engine.stage import Stage
from zaq.engine.task import Task
from zaq.methods.base import Method
from zaq.quant.observers import Observer
from zaq.stages.calibrate import Calibrate, Noise

__all__ = ["RTN"]


@dataclass(frozen=True)
class RTN(Method):
    """Weights rounded over their whole range, activation ranges from the least and the greatest value that noise
    causes.

    The noise is what tools that ask for data are fed without any: standard normal in the model's normalised space.
    """

    batches: OneOrMore = 4
    observer: Observer = "minmax"  # one of OBSERVERS
    search: bool = False  # True: weight grids of the least error instead of the whole range

    name: ClassVar[str] = "rtn"
    pictures: ClassVar[bool] = False
    parts: ClassVar[tuple[type[Stage], ...]] = (Calibrate,)

    def stages(self, task: Task) -> list[Stage]:
        """Noise, and ranges from it."""
        return [Noise(steps=self.batches), Calibrate(observer=self.observer)]
