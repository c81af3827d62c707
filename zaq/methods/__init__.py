"""Methods, one paper a file: a frozen dataclass of the paper's constants, and the list of stages they make."""

from zaq.methods.aciq import ACIQ
from zaq.methods.base import Method
from zaq.methods.deepinversion import DeepInversion
from zaq.methods.dfq import DFQ
from zaq.methods.flagship import Flagship
from zaq.methods.ft import FineTune
from zaq.methods.gdfq import GDFQ
from zaq.methods.rtn import RTN
from zaq.methods.zaq import ZAQ
from zaq.methods.zeroq import ZeroQ

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (Flagship, RTN, DFQ, ACIQ, ZeroQ, DeepInversion, GDFQ, ZAQ, FineTune)
}
