"""Methods, one paper a file: a frozen dataclass of the paper's constants, and the list of stages they make."""

from zaq.config.plugins import lookup
from zaq.errors import BitsError
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

__all__ = ["METHODS", "Method", "kind_named", "method_named"]

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (Flagship, RTN, DFQ, ACIQ, ZeroQ, DeepInversion, GDFQ, ZAQ, FineTune)
}


def kind_named(name: str) -> type[Method]:
    """The class that a name stands for: one of METHODS, an installed package's, or `package.module:Class`.

    Raises BitsError for a name that nobody offers, with the near one, and for what is no method.
    """
    kind: object = lookup("zaq.methods", "method", name, METHODS, by_path=True)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise BitsError(f"--method {name}: is no subclass of zaq.methods.Method.")
    return kind


def method_named(method: Method | str) -> Method:
    """A method as it is, or by its name with the constants of its paper.

    Raises BitsError for a name as `kind_named` does, for a class in place of a method, and for anything else.
    """
    if isinstance(method, str):
        return kind_named(method)()
    if not isinstance(method, Method):
        hint = f"; write {method.__name__}()" if isinstance(method, type) else ""
        raise BitsError(f"method: {method!r} is no zaq.methods.Method{hint}.")
    return method
