"""Mixed precision as a stage: bits for each weight, under the budget that the QConfig names."""

from dataclasses import dataclass, replace

from zaq.engine.journal import Journal
from zaq.engine.stage import Loop, Stage
from zaq.engine.state import State
from zaq.ir.nodes import attribute
from zaq.quant.placement import place
from zaq.stats.mixed import Sensitivities, allocate, sizes

__all__ = ["ChooseBits"]

LEAST_BITS = 2


@dataclass(frozen=True, kw_only=True)
class ChooseBits(Stage):
    """Place the student anew, uncalibrated, at the bits that disturb the teacher least on a batch of its images.

    Raises BitsError for a budget out of reach, before anything is measured.
    """

    name: str = "mixed"
    search: bool = True  # grids of the least error, as in `FakeQuantize.fit_weight`
    all_images: bool = False  # measure on all of them, not on one batch

    def applies(self, state: State) -> bool:
        return state.task.qconfig.mixed

    def length(self, state: State) -> int:
        return len(self._fewest(state))

    def _fewest(self, state: State):  # type: ignore[no-untyped-def]
        config = replace(state.task.qconfig, weight_bits=LEAST_BITS, layer_bits={})
        return place(state.task.teacher, config, state.task.card, unlike=state.task.unlike)[1].weights

    def start(self, state: State, journal: Journal) -> Loop:
        task, config, images = state.task, state.task.qconfig, state.images
        assert images is not None
        fewest = self._fewest(state)
        size, biases = sizes(task.teacher, fewest)
        target = config.target_size
        if config.average_bits is not None:
            numel = {name: attribute(task.teacher, name).numel() for name in fewest}
            packed = sum(int(n * config.average_bits / 8) + 4 * len(fewest[name].scale) for name, n in numel.items())
            target = biases + packed
        assert target is not None
        budget: int = target
        nothing = {name: dict.fromkeys(choices, 0.0) for name, choices in size.items()}
        allocate(nothing, size, budget, biases)  # what cannot be reached, at once
        some = (images if self.all_images else images[: task.batch]).to(task.device)
        measured = Sensitivities(task.teacher, fewest, some, self.search, task.batch)

        def finish() -> None:
            if len(measured.found) < len(fewest):
                return  # Ctrl-C: the bits stay those of the QConfig
            choice = allocate(measured.found, size, budget, biases)
            state.rewrite(qconfig=replace(config, layer_bits=choice.bits))
            state.frontier = choice.frontier
            journal.records[-1].say(f"sum of KL sensitivities {choice.omega:.3g}")

        return Loop(lambda i: measured.measure(list(fewest)[i]), finish=finish)
