"""What can be named on the command line, told without torch: so that a slip of the pen is answered at once.

What the names stand for is in `zaq.methods.METHODS` and `zaq.sources.SOURCES`; a test holds that these are the same.
"""

import difflib
import importlib.util
import re
from pathlib import Path

from zaq.config import near
from zaq.config.plugins import lookup
from zaq.errors import BitsError, DataError, SourceError, unknown

__all__ = [
    "DEFAULT", "METHODS", "NO_PROXY", "PROXIES", "SOURCES",
    "is_file", "kind_of", "missing", "name_of", "require_method", "require_proxy",
]  # fmt: skip

DEFAULT = "zoo:resnet20_cifar10"
METHODS = ("flagship", "rtn", "dfq", "aciq", "zeroq", "deepinversion", "gdfq", "zaq", "ft")
PROXIES = ("flagship",)  # those of them that can learn from photographs
NO_PROXY = "--proxy goes with --method flagship alone; {} is handed no photographs."
# How a source is spelt: the suffix of a file, or a prefix.
SOURCES = (
    ".pt2", ".onnx", ".safetensors", ".pt", ".pth", ".pkl",
    "zoo:", "timm:", "torchvision:", "hf-hub:", "package.module:",
)  # fmt: skip


def require_method(name: str) -> None:
    """Raise BitsError for a method that there is not. A user's own, `package.module:Class`, is not imported."""
    if ":" not in name:
        lookup("zaq.methods", "method", name, dict.fromkeys(METHODS), by_path=True)


def require_proxy(folder: str, method: str, samples: str | None) -> None:
    """Raise UserError where the photographs of `--proxy` cannot be learned from, whatever they are."""
    if ":" not in method and method not in PROXIES:
        raise BitsError(NO_PROXY.format(method))
    if samples is not None:
        raise BitsError(f"--proxy {folder} and --samples {samples}: both say what is learned from; leave one out.")
    if not Path(folder).exists():
        raise DataError("--proxy " + missing(Path(folder)))
    if not Path(folder).is_dir():
        raise DataError(f"--proxy {folder}: is a file; name the folder that the photographs are in.")


def is_file(spec: str) -> bool:
    """Whether a source is spelt as a file, and not as `kind:name`."""
    return Path(spec).exists() or not re.match(r"[A-Za-z_][\w.-]+:", spec)


def kind_of(spec: str) -> tuple[str, str, Path | None]:
    """The one of SOURCES that a spelling has, the name behind a prefix, and the path of a file.

    Raises SourceError for a file that is not there or no model, and for a kind that there is not.
    """
    if is_file(spec):
        path = Path(spec)
        if not path.exists():
            meant = near.missing(spec, SOURCES, [DEFAULT.partition(":")[2]])
            hint = f" Did you mean {meant}?" if meant else ""
            raise SourceError(
                f"{spec}: there is no such file or folder.{hint} A model is a .pt2 file, or {DEFAULT}, or spelt "
                f"{', '.join(SOURCES)}."
            )
        if path.is_dir():
            raise SourceError(f"{spec}: {near.folder(path, SOURCES)}.")
        suffix = path.suffix.lower()
        if suffix not in SOURCES and (way := near.route(path)):
            raise SourceError(f"{spec}: is of a kind that zaq does not read: {way}.")
        if suffix not in SOURCES or not path.is_file():
            files = ", ".join(s for s in SOURCES if s.startswith("."))
            raise SourceError(f"{spec}: cannot tell a model by {suffix or 'no suffix'!r}; there is: {files}.")
        return suffix, spec, path
    kind, _, name = spec.partition(":")
    if name.startswith("//"):
        raise SourceError(f"{spec}: is an address, and zaq fetches nothing by one; download it, and name the file.")
    if f"{kind}:" in SOURCES:
        return f"{kind}:", name, None
    if "." not in kind and not (Path(f"{kind}.py").is_file() or Path(kind).is_dir() or importlib.util.find_spec(kind)):
        kinds = [k[:-1] for k in SOURCES if k.endswith(":")]
        raise SourceError(f"{spec}: " + unknown("kind of source, or module of a factory,", kind, kinds))
    return "package.module:", name, None


def name_of(spec: str) -> str:
    """What a source is called in a run's folder, as `zaq.sources.load` calls it."""
    _, name, path = kind_of(spec)
    return path.stem if path else name.rpartition("/")[2]


def missing(path: Path) -> str:
    """The sentence for a path where there is nothing, with the near name that there is."""
    try:
        there = [p.name for p in path.parent.iterdir()]
    except OSError:
        there = []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.7)
    return f"{path}: there is no such file or folder." + (f" Did you mean {path.parent / near[0]}?" if near else "")
