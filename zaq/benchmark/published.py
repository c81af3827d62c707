"""Numbers of the literature beside ours, only where protocol, network, bits and method are the same."""

import csv
import re
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["best_drop", "protocol", "published"]

TABLE = Path(__file__).with_name("published.csv")
# P1: every layer at the same bits, activations only after ReLU. P2: what a layer reads, first and last layer 8 bits.
PROTOCOLS = {"gdfq": "P1", "brecq": "P2"}
ALIASES = {"mobilenet_v1_075_imagenet": "mobilenet_v1_imagenet"}  # of another width, as the remark there says
OTHERS = ("P1", "SQ")  # which number stands, marked, where the row's own protocol is none of the literature's


def protocol(row: dict[str, Any]) -> str | None:
    """The protocol of the literature that a row follows: its placement's, with nothing changed."""
    ends = {"gdfq": ("", "same"), "brecq": ("", "8")}.get(row["placement"], ())
    return (
        PROTOCOLS[row["placement"]]
        if row["first_last"] in ends and row["weights"] in ("", "per_channel_affine")
        else None
    )


def published(row: dict[str, Any]) -> dict[str, Any]:
    """The published_* columns of a row; empty where the literature is silent, or where a setting makes it another
    method.
    """
    found = [] if row["settings"] else [p for p in _same_task(row) if p["method"] == row["algorithm"]]
    if not found:
        return {}
    entry, mark = found[0], "" if protocol(row) else " (other protocol)"
    return {
        "published_top1": float(entry["top1"]),
        "published_float": float(entry["float"]),
        "published_protocol": entry["protocol"] + mark + (f"; {entry['remark']}" if entry["remark"] else ""),
        "published_source": entry["source"],
    }


def best_drop(row: dict[str, Any]) -> str:
    """The least drop that was published without real data, and whose it is: `1.13 synq`."""
    found = [(float(p["float"]) - float(p["top1"]), p["method"]) for p in _same_task(row) if not p["real_data"]]
    mark = "" if protocol(row) else " (other protocol)"
    drop, method = min(found, default=(0.0, ""))
    return f"{drop:.2f} {method}{mark}" if found else ""


def _same_task(row: dict[str, Any]) -> list[dict[str, str]]:
    """Entries of the row's network and bits: of its own protocol, or of the first of OTHERS that has any."""
    name = _name(row["model"])
    fitting = [p for p in _entries() if p["bits"] == row["bits"] and p["network"] == ALIASES.get(name, name)]
    own = protocol(row)
    for name in (own,) if own else OTHERS:
        found = [p for p in fitting if p["protocol"] == name]
        if found:
            return found
    return []


def _name(model: str) -> str:
    """A model's name as the table spells it. The whole of it counts: `my_resnet18_on_flowers` is another network."""
    return re.sub(r"[^a-z0-9]+", "_", model.lower())


@cache
def _entries() -> list[dict[str, str]]:
    with TABLE.open(newline="") as stream:
        return list(csv.DictReader(stream))
