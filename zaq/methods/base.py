"""What a method is: constants of a paper, as the fields of a frozen dataclass, and a list of stages made from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from zaq.config.constants import check_constants
from zaq.engine.stage import Stage
from zaq.engine.task import Task
from zaq.errors import BitsError, unknown

__all__ = ["Method"]


@dataclass(frozen=True)
class Method:
    """A way to quantize a network. `stages` says how; a method of your own overrides that, and nothing else.

    `stage_constants` sets fields of single stages, by "stage.field" (`-s reconstruct.drop=0.3`); a blank in a
    stage's name is
    written as "-".
    """

    stage_constants: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    name: ClassVar[str] = ""  # as `--method` has it
    parts: ClassVar[tuple[type[Stage], ...]] = ()  # the stages whose fields `-s stage.field=value` reaches
    reads_data: ClassVar[bool] = False  # whether `stages` takes real images beside the task: of `ft` alone
    mixes: ClassVar[bool] = False  # whether it finds bits for `--bits mixed`
    proxies: ClassVar[bool] = False  # whether photographs can take the place of what it draws (`stages.proxy`)
    pictures: ClassVar[bool] = True  # whether it draws or learns images, (N, C, H, W); else it takes lines and volumes
    searches: ClassVar[bool] = True  # whether weight grids are those of the least error, if it has no field `search`

    def __post_init__(self) -> None:
        check_constants(self)

    def stages(self, task: Task) -> list[Stage]:
        """The stages in their order, for a task."""
        raise NotImplementedError

    def plan(self, task: Task, *data: Any) -> list[Stage]:
        """The stages with `stage_constants` in place. Raises BitsError for a stage or a field that is not there, or a
        value out of its range.
        """
        check_constants(self)  # a method of one's own may have left out what is done at its making
        stages = self.stages(task, *data)
        known = {key_of(s.name): s for s in stages}
        for key in self.stage_constants:
            name, _, constant = key.partition(".")
            if name not in known:
                raise BitsError(f"-s {key}: " + unknown(f"stage of {self.name}", name, known))
            there = [f.name for f in fields(known[name])]
            if constant not in there:
                raise BitsError(f"-s {key}: " + unknown(f"constant of {name}", constant, there))
        return [self._set(stage) for stage in stages]

    def _set(self, stage: Stage) -> Stage:
        own = {
            k.partition(".")[2]: v for k, v in self.stage_constants.items() if k.partition(".")[0] == key_of(stage.name)
        }
        return replace(stage, **own) if own else stage


def key_of(name: str) -> str:
    """A stage's name as `-s` spells it."""
    return name.replace(" ", "-")
