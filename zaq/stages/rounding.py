"""SQuant as a stage: weights rounded so that the errors of a kernel, and of a channel, cancel."""

from collections.abc import Callable
from dataclasses import dataclass

from zaq.engine.journal import Journal
from zaq.engine.stage import Stage
from zaq.engine.state import State
from zaq.quant.edges import HIGH
from zaq.quant.rounding import into_cells, squant

__all__ = ["SQuant"]


@dataclass(frozen=True, kw_only=True)
class SQuant(Stage):
    """Round every weight of fewer than 8 bits in closed form (Guo et al. 2022; `quant.rounding.squant`)."""

    name: str = "squant"

    def applies(self, state: State) -> bool:
        return self.steps > 0 and any(q.bits < HIGH for q in state.student.placement.weights.values())

    def judge(self, state: State) -> Callable[[], float] | None:
        return state.judge

    def once(self, state: State, journal: Journal) -> None:
        for name, quantizer in state.student.placement.weights.items():
            if quantizer.bits < HIGH:
                weight = state.student.weight(name)
                into_cells(quantizer, weight.data, squant(quantizer, weight))
