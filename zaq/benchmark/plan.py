"""What a benchmark runs: cells, from flags or from a YAML file. Nothing here runs anything.

A plan is a list of `runs`, each a block of the keys in `KEYS`; the same keys beside `runs` are their defaults.
"""

import hashlib
import itertools
import os
import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from zaq.config.bits import EFFORTS, QConfig
from zaq.config.bounds import json_text, plain_text
from zaq.errors import UserError, unknown
from zaq.sources import is_file

__all__ = ["KEYS", "READS_IMAGES", "Cell", "cells_of", "read_plan", "shard"]

KEYS = (
    "models",
    "data",
    "task",
    "decode",
    "bits",
    "methods",
    "placements",
    "seeds",
    "effort",
    "settings",
    "weights",
    "first_last",
    "limit",
)
READS_IMAGES = "ft"  # the one method that is given the data: a bar to compare with
# At most, of a run and of a block: a plan is short, and what it asks for must not fill memory.
SEEDS, CELLS = 1000, 100_000
METHOD_KEYS = ("name", "method", "effort", "settings", "seeds")

Identify = Callable[
    [str], tuple[str, str]
]  # a model as it is named -> its short name, and a hash of all it consists of


@dataclass(frozen=True)
class Cell:
    """One quantization, which is run and measured once."""

    model: str
    model_name: str
    model_hash: str
    data: str
    bits: str
    method: str
    name: str  # of the method, in tables
    settings: tuple[str, ...] = ()  # key=value, as -s takes them
    placement: str | None = None
    weights: str | None = None
    first_last: str | None = None
    seed: int = 0
    effort: str = "default"
    limit: int | None = None
    task: str | None = None  # what it is measured by; None: as the model's card says
    decode: str | None = None  # file of a detector's decoding constants

    @property
    def id(self) -> str:
        """A folder's name: readable, and different wherever anything that defines the cell is."""
        facts = {k: v for k, v in asdict(self).items() if k not in ("model", "model_name", "name")}
        facts = {
            k: v for k, v in facts.items() if k not in ("task", "decode") or v is not None
        }  # cells from before these were there
        digest = hashlib.sha256(json_text(facts, sort_keys=True).encode()).hexdigest()[:8]
        words = (self.model_name, self.name, self.bits, self.placement or "integer", f"s{self.seed}", digest)
        return "-".join(re.sub(r"[^\w.+=]+", "_", word).strip("_") for word in words)

    def command(self, output: Path) -> list[str]:
        """The arguments of `zaq` that run it, as a user would type them."""
        words = [
            "quantize",
            self.model,
            "--method",
            self.method,
            "--bits",
            self.bits,
            "--seed",
            str(self.seed),
            "--effort",
            self.effort,
        ]
        for flag in ("placement", "weights", "first_last"):
            value = getattr(self, flag)
            words += [] if value is None else [f"--{flag.replace('_', '-')}", value]
        words += [word for setting in self.settings for word in ("-s", setting)]
        words += ["--data", self.data] if self.method == READS_IMAGES else []
        return [*words, "-o", str(output)]


def read_plan(path: Path, identify: Identify, limit: int | None = None) -> list[Cell]:
    """The cells of a YAML file; its relative paths are relative to it, and `limit` goes before its own.

    Raises UserError naming the run that is wrong.
    """
    if not path.is_file():
        raise UserError(f"{path}: cannot be read (there is no such file).")
    try:
        plan = yaml.safe_load(plain_text(path))
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, LookupError) as error:  # of a tag, the last two
        raise UserError(f"{path}: is not readable as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(plan, dict):
        raise UserError(f"{path}: a plan is a mapping with the key runs, not a {type(plan).__name__}.")
    defaults = {k: v for k, v in plan.items() if k != "runs"}
    _check_keys(defaults, (*KEYS, "runs"), str(path))
    runs = plan.get("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise UserError(f"{path}: runs is a list of mappings, each with some of: {', '.join(KEYS)}.")
    cells: list[Cell] = []
    for index, run in enumerate(runs):
        where = f"{path}, runs[{index}]"
        _check_keys(run, KEYS, where)
        settings = {**_mapping(defaults.get("settings"), where), **_mapping(run.get("settings"), where)}
        block = {**defaults, **run, "settings": settings}
        cells += cells_of(block if limit is None else {**block, "limit": limit}, path.parent, where, identify)
    return _unique(cells)


def cells_of(block: dict[str, Any], folder: Path, where: str, identify: Identify) -> list[Cell]:
    """Every combination that a block asks for. `folder`: of relative paths; `where`: what an error names."""
    for key in ("models", "data"):
        if not block.get(key):
            raise UserError(f"{where}: {key} missing; say what to {'quantize' if key == 'models' else 'measure on'}.")
    effort, limit, end = block.get("effort", "default"), block.get("limit"), block.get("first_last")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise UserError(f"{where}: limit {shown(limit)}: a number of images is expected.")
    end = None if end is None else str(end)
    data = _data(_text(block["data"], "data", where), folder)
    task, decode = (_text(block[k], k, where) if block.get(k) else None for k in ("task", "decode"))
    decode = decode and str(_path(decode, folder))
    methods = [_method(m, block, where) for m in _list(block.get("methods", "zaq"), "methods", where)]
    cells: list[Cell] = []
    for model, placement, bits in itertools.product(
        [_model(m, folder) for m in _texts(block["models"], "models", where)],
        _texts(block["placements"], "placements", where) if block.get("placements") else [None],
        _texts(block.get("bits", "w4a4"), "bits", where),
    ):
        _check_bits(bits, end, placement, block.get("weights"), where)
        name, digest = identify(model)
        for method in methods:
            if method.get("effort", effort) not in EFFORTS:
                raise UserError(f"{where}: " + unknown("effort", str(method.get("effort", effort)), EFFORTS))
            if len(cells) > CELLS:
                raise UserError(f"{where}: asks for more than {CELLS} runs; split the plan.")
            for seed in _seeds(method.get("seeds", block.get("seeds", 1)), where):
                cells.append(
                    Cell(
                        model,
                        name,
                        digest,
                        data,
                        bits.lower(),
                        method["method"],
                        method["name"],
                        method["settings"],
                        placement,
                        block.get("weights"),
                        end,
                        seed,
                        method.get("effort", effort),
                        limit,
                        task,
                        decode,
                    )
                )
    return _unique(cells)


def shard(cells: list[Cell], text: str) -> list[Cell]:
    """Every N-th cell for `I/N`, counted from 0; N/N is 0/N, so that job arrays that count from 1 miss none."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not match or int(match[2]) < 1 or int(match[1]) > int(match[2]):
        raise UserError(f"--shard {text}: I/N is expected with I from 0 to N - 1, as in 0/4 (N/N counts as 0/N).")
    return cells[int(match[1]) % int(match[2]) :: int(match[2])]


def _method(entry: Any, block: dict[str, Any], where: str) -> dict[str, Any]:
    """`zaq`, `zaq[alpha=0,relation=gram]` or a mapping of METHOD_KEYS, as a mapping with name, method and settings."""
    settings = _mapping(block.get("settings"), where)
    if isinstance(entry, str):
        match = re.fullmatch(r"\s*([\w-]+)\s*(?:\[(.*)\])?\s*", entry)
        if not match:
            raise UserError(f"{where}: methods: {shown(entry)} is not of the form name or name[key=value,...].")
        # a comma inside a value (milestones=0.5,0.75) has no key behind it
        given = [
            re.sub(r"\s*=\s*", "=", s.strip(), count=1)
            for s in re.split(r",(?=\s*\w+\s*=)", match[2] or "")
            if s.strip()
        ]
        common = [
            s for s in _spelled(settings, where) if s.partition("=")[0] not in {g.partition("=")[0] for g in given}
        ]
        return {"name": entry.strip(), "method": match[1], "settings": tuple(sorted((*common, *given)))}
    if not isinstance(entry, dict) or not isinstance(entry.get("method", entry.get("name")), str):
        raise UserError(f"{where}: methods: {shown(entry)} is neither a name nor a mapping with the key method.")
    _check_keys(entry, METHOD_KEYS, f"{where}, methods")
    spelled = _spelled({**settings, **_mapping(entry.get("settings"), where)}, where)
    name = entry.get("method", entry.get("name"))
    return {**entry, "name": str(entry.get("name", name)), "method": name, "settings": spelled}


def shown(value: Any) -> str:
    """A value of a plan in a message, cut: a few lines of YAML may repeat a list a million times."""
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = 80
    return cut.repr(value)


def _spelled(settings: dict[str, Any], where: str) -> tuple[str, ...]:
    """Settings as -s takes them: true, none, 0.5,0.75."""

    def spell(value: Any) -> str:
        if isinstance(value, list) and not any(isinstance(v, list | dict) for v in value):
            return ",".join(map(spell, value))
        if isinstance(value, list | dict):
            raise UserError(f"{where}: settings: {shown(value)}: a value is expected, or a list of values.")
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    return tuple(sorted(f"{key}={spell(value)}" for key, value in settings.items()))


def _check_bits(bits: str, end: str | None, placement: str | None, weights: str | None, where: str) -> None:
    if end is not None and not re.fullmatch(r"same|\d{1,9}", end):
        raise UserError(f"{where}: first_last {end}: a number of bits is expected, or 'same'.")
    first_last = "" if end is None else None if end == "same" else int(end)
    try:
        QConfig.parse(bits, first_last, placement or "integer", weights)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_keys(values: dict[Any, Any], known: Iterable[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"{where}: " + unknown("key", str(key), known))


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value or {}, dict):
        raise UserError(f"{where}: settings is a mapping of a method's constants, not {shown(value)}.")
    return dict(value or {})


def _list(value: Any, key: str, where: str) -> list[Any]:
    """A list as it is; a text cut at the commas that stand in no brackets."""
    if isinstance(value, str):
        value = [part for part in re.split(r",(?![^\[]*\])", value) if part.strip()]
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {key}: a list is expected, not {shown(value)}.")
    return value


def _texts(value: Any, key: str, where: str) -> list[str]:
    return [_text(v, key, where).strip() for v in _list(value, key, where)]


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {key}: a text is expected, not {shown(value)}.")
    return value


def _seeds(value: Any, where: str) -> list[int]:
    seeds = list(range(min(value, SEEDS + 1))) if isinstance(value, int) else value
    if not isinstance(seeds, list) or not 1 <= len(seeds) <= SEEDS or not all(_is_seed(s) for s in seeds):
        raise UserError(
            f"{where}: seeds {shown(value)}: their number is expected, at least 1 and at most {SEEDS}, or a list of "
            "them, from 0 to 2^63 - 1 each."
        )
    return seeds


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _model(spec: str, folder: Path) -> str:
    """zoo:NAME and the like as they are; a file with ~ and variables in place, relative to `folder`."""
    return str(_path(spec, folder)) if is_file(spec) else spec


def _data(spec: str, folder: Path) -> str:
    kind, colon, place = spec.partition(":")
    return f"{kind}:{_path(place, folder).resolve()}" if colon else spec


def _path(text: str, folder: Path) -> Path:
    return (folder / Path(os.path.expandvars(text)).expanduser()).absolute()


def _unique(cells: list[Cell]) -> list[Cell]:
    """Each cell once, and seed after seed, so that a benchmark that is not finished has something of everything."""
    return sorted({cell.id: cell for cell in cells}.values(), key=lambda cell: cell.seed)
