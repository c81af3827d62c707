"""The recipe `zaq quantize` follows unless told otherwise: the best known parts, each kept only if it serves.

    even channels -> synthesis -> ranges -> SQuant -> block reconstruction -> distillation -> the adversarial game
    -> bias correction

Where activations have 8 bits, ranges become the whole of what is seen if that serves (`stages.calibrate.WholeRanges`).
Images come from a generator and are refined (`stages.synthesis`); of those too large for that a part starts from noise.
A second generator, of another seed, draws those that every stage is judged on, half of them moved to where student and
teacher differ; where nothing is known of images, every second one is noise. A stage after which the outputs differ more
on them is taken back.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from zaq.config.constants import Amount, Count, OneOrMore, Positive, Share
from zaq.engine.stage import Stage
from zaq.engine.task import Task
from zaq.methods.base import Method
from zaq.methods.zaq import Game
from zaq.quant.edges import HIGH
from zaq.stages.bias import CorrectBiases
from zaq.stages.calibrate import Calibrate, HoldOut, WholeRanges
from zaq.stages.mix import ChooseBits
from zaq.stages.polish import Polish
from zaq.stages.reconstruct import Reconstruct
from zaq.stages.rewrite import Even
from zaq.stages.rounding import SQuant
from zaq.stages.synthesis import Draw, FromNoise, Mingle, Refine, Synthesize, refines
from zaq.synth.registry import GeneratorName, require

__all__ = ["Flagship"]


@dataclass(frozen=True)
class Lengths:
    """How long each stage takes: steps, images, rounds. 0 leaves it out."""

    synthesis: int
    refine: int
    images: int
    reconstruct: int
    polish: int
    game: int


LENGTHS = {
    "fast": Lengths(24, 0, 256, 15, 0, 0),
    "default": Lengths(120, 40, 512, 100, 200, 3),
    "best": Lengths(240, 80, 1024, 300, 1500, 5),
}
A_CLASS = 20  # refined images, or twice as many are drawn: the distillation sees no others


@dataclass(frozen=True)
class Flagship(Method):
    """The stages' lengths (`None`: set by the effort; 0 leaves one out); every stage's own constants are `-s
    stage.field`.
    """

    synthesis: Count | None = None  # steps of the generator; the second one takes half
    refine: Count | None = None  # steps of the images' own pixels
    images: OneOrMore | None = None  # that ranges, blocks and the distillation are learned on; see `A_CLASS`
    squant: bool = True
    reconstruct: Count | None = None  # steps a block
    polish: Count | None = None  # steps of the distillation
    game: Count | None = None  # rounds of ZAQ's
    correct: bool = True  # biases, behind every block that was learned and at the end
    generator: GeneratorName = "painter"  # of the images that are learned from; those held out are painted
    cycle: Amount | None = (
        None  # of `synthesis`: weight of the way back to the canvas (CycleGAN: 10); None: see --proxy
    )
    truncation: Positive | None = None  # of `draw`: where the normal numbers end that a dcgan or biggan starts from
    unpainted: Share = 0.5  # of `polish`
    feature: Amount = 1.0  # of `polish`
    travel: Amount = 6.0  # of `polish`
    fastest: Amount = 6e-3  # of `polish`
    lr_bias: Amount = 1e-4  # of `polish`
    attack: Share = 0.02  # of the samples held out, in parts of a pixel's range
    attack_steps: Count = 3
    drop: Share = 0.5  # of the reconstruction

    name: ClassVar[str] = "flagship"
    mixes: ClassVar[bool] = True
    proxies: ClassVar[bool] = True
    parts: ClassVar[tuple[type[Stage], ...]] = (
        Even, Synthesize, Refine, Mingle, ChooseBits, Calibrate, HoldOut, WholeRanges, SQuant, Reconstruct, Polish,
        Game, CorrectBiases,
    )  # fmt: skip

    def stages(self, task: Task) -> list[Stage]:
        """The recipe, in its order. Raises BitsError for a truncation that the generator does not know."""
        if self.truncation is not None:
            require(self.generator, f"truncation={self.truncation:g}", "truncates")
        given = {f.name: getattr(self, f.name) for f in fields(Lengths) if getattr(self, f.name) is not None}
        n = replace(LENGTHS[task.effort], **given)
        sparse = self.images is None and n.refine > 0 and refines(task) and n.images < A_CLASS * (task.classes or 0)
        return [
            Even(),
            Synthesize(steps=n.synthesis, generator=self.generator, cycle=self.cycle),
            Synthesize(name="held-out synthesis", steps=n.synthesis // 2, held_out=True),
            Draw(count=n.images * (2 if sparse else 1), truncation=self.truncation),
            Draw(name="held-out draw", count=task.few, held_out=True),
            Refine(steps=n.refine),
            FromNoise(name="refine", steps=n.refine),
            Refine(name="held-out refine", steps=n.refine, held_out=True),
            FromNoise(name="held-out refine", steps=n.refine, every=2, held_out=True),
            Mingle(),
            ChooseBits(),
            Calibrate(drawn=True),
            HoldOut(attack=self.attack, steps=self.attack_steps),
            WholeRanges(steps=int(task.qconfig.act_bits >= HIGH), drawn=True),
            SQuant(steps=int(self.squant)),
            Reconstruct(steps=n.reconstruct, drop=self.drop, correct=self.correct),
            Polish(
                steps=n.polish,
                drawn=n.refine == 0,
                unpainted=self.unpainted,
                feature=self.feature,
                travel=self.travel,
                fastest=self.fastest,
                lr_bias=self.lr_bias,
            ),
            Game(steps=n.game),
            CorrectBiases(steps=int(self.correct)),
        ]
