"""Is what was read the network of the file? Both are run on pixels of the card's range and compared.

How far they may part is measured: onnxruntime on the file itself, as it is and with its optimisations off, and as it is
on the same pixels moved by a float's last bits. That is how far two right readings of this network part. Whole numbers
and truths may part in as many places as there, and a few more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from zaq.errors import SourceError
from zaq.sources.base import Source, first_line
from zaq.sources.frame import Cut, put_back
from zaq.sources.interface import KINDS

__all__ = ["require_same"]

TIMES = 16  # as far as two right readings part: other sums in other orders than onnxruntime's two
LEAST = 2e-5  # of the largest value: some sixteen million steps of a float's last bit, in networks that never part
PLACES = 1e-3  # of an output's whole numbers
ULP = 2.0**-23
Values = list[NDArray[Any]]


def require_same(
    path: Path, spellings: Sequence[bytes], found: Cut, bound: Mapping[str, tuple[float, ...]], source: Source
) -> None:
    """Raises SourceError where the graph of `source` is not the network of a file, or where the file does not run.

    `spellings`: the file as it is, and after that in other spellings of it, for where onnxruntime takes it in none
    before. `found`: what the graph was read from.
    """
    feed, expected, noise = _first(path, spellings, found, bound, source)
    x = _to_network(feed[found.image], found)
    with torch.no_grad():
        read = [v.numpy() for v in pytree.tree_leaves(source.graph(torch.from_numpy(x)))]
    if source.frame is None:
        _require(path, "onnx2torch reads", read, expected, noise)
        return
    inner = found.network.SerializeToString()
    _require(path, "onnx2torch reads", read, *_measured(inner, {found.network.graph.input[0].name: x}))
    framed = put_back(inner, source.frame)
    taken = [i.name for i in _session(framed).get_inputs()]
    _require(path, "zaq makes", _outputs(framed, {k: feed[k] for k in taken}), expected, noise)


def _measured(content: bytes, feed: Mapping[str, NDArray[Any]]) -> tuple[Values, list[Values]]:
    """The outputs of a file, and those of two other ways to compute them."""
    moved = {k: v * np.float32(1 + ULP) if _is_float(v) else v for k, v in feed.items()}
    plain = _outputs(content, feed, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return _outputs(content, feed), [plain, _outputs(content, moved)]


def _require(path: Path, who: str, found: Values, expected: Values, others: Sequence[Values]) -> None:
    for i, (value, right) in enumerate(zip(found, expected, strict=True)):
        noise = max(_apart(other[i], right) for other in others)
        allowed = max(TIMES * noise, LEAST if _is_float(right) else PLACES)
        wrong = _apart(value, right)
        if not wrong <= allowed:
            raise SourceError(
                f"{path}: {who} another network out of it (outputs differ by {100 * wrong:.2g} %, where two right "
                f"readings differ by {100 * noise:.2g} %)."
            )


def _is_float(value: NDArray[Any]) -> bool:
    return bool(np.issubdtype(value.dtype, np.floating))


def _apart(value: NDArray[Any], right: NDArray[Any]) -> float:
    """The largest difference, of the largest value; of whole numbers the share that differs."""
    if value.shape != right.shape:
        return float("inf") if _is_float(right) else abs(value.size - right.size) / max(value.size, right.size, 1)
    if not right.size:
        return 0.0
    if not _is_float(right):
        return float((value != right).mean())
    a, b = value.astype(np.float64), right.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
    return float(apart.max() / max(float(np.abs(b[np.isfinite(b)]).max(initial=0.0)), 1e-12))


def _first(
    path: Path, spellings: Sequence[bytes], found: Cut, bound: Mapping[str, tuple[float, ...]], source: Source
) -> tuple[dict[str, NDArray[Any]], Values, list[Values]]:
    """What goes in and what comes out, of the first spelling that onnxruntime runs."""
    reason: Exception | None = None
    for content in spellings:
        try:
            feed = _feed(content, found, bound, source)
            return (feed, *_measured(content, feed))
        except Exception as error:  # onnxruntime's own kinds derive from nothing nearer
            reason = reason or error
    assert reason is not None
    raise SourceError(f"{path}: onnxruntime cannot run it: {first_line(reason)}") from reason


def _feed(
    content: bytes, found: Cut, bound: Mapping[str, tuple[float, ...]], source: Source
) -> dict[str, NDArray[Any]]:
    """Pixels of the card's range for the image; for other inputs what they are bound to, or ones."""
    feed: dict[str, NDArray[Any]] = {}
    for start in _session(content).get_inputs():
        kind = np.dtype(KINDS[start.type])
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in start.shape]
        if start.name != found.image:
            feed[start.name] = np.broadcast_to(np.reshape(bound.get(start.name, 1.0), -1), shape).astype(kind)
            continue
        batch = start.shape[0] if start.shape and isinstance(start.shape[0], int) and start.shape[0] > 0 else 2
        low, high = (v.numpy() for v in source.card.bounds())
        share = np.random.default_rng(0).random((batch, *source.card.input), np.float32)
        x = low + (high - low) * share
        x = x.round() if found.integers else x
        feed[start.name] = np.ascontiguousarray(x.transpose(0, 2, 3, 1) if found.nhwc else x).astype(kind)
    return feed


def _to_network(image: NDArray[Any], found: Cut) -> NDArray[np.float32]:
    """A file's image as the network inside takes it."""
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2) if found.nhwc else image, np.float32)


def _session(content: bytes, level: Any = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if level is not None:
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _outputs(content: bytes, feed: Mapping[str, NDArray[Any]], level: Any = None) -> Values:
    return list(_session(content, level).run(None, dict(feed)))
