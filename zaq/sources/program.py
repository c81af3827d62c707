"""Models as torch.export files. torch's own reader unpickles parts of one, compiles others and takes whatever entry it
finds first; so it is never given the file, but an archive made anew of the entries that were checked, and of no others.
"""

import io
import json
import zipfile
import zlib
from pathlib import Path

import torch
from onnx_ir import tensor_adapters
from torch import Tensor
from torch.export.pt2_archive._package import PT2ArchiveWriter
from torch.fx import GraphModule

from zaq.config.bounds import capacity, entries, plain_json
from zaq.errors import SourceError, ZaqError
from zaq.ir.capture import at_size, from_exported, image_of, quiet
from zaq.ir.nodes import image_sizes, open_sizes
from zaq.ir.sizes import WORDS, open_up
from zaq.sources.base import SAVE_IT, Request, Source, file_hash, first_line
from zaq.sources.checks import check_program, check_weights
from zaq.sources.frame import frame_of
from zaq.sources.interface import End
from zaq.sources.layout import NCHW, NHWC, is_nhwc, layout_in, turn

__all__ = ["REAL_IMAGES", "read_program", "read_program_source", "read_pt2"]

MODEL = "models/model.json"
# Where weights lie, and the entry that describes them.
STORES = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
REAL_IMAGES = "zaq.real_images_read"  # the extra file in which a run's checkpoint says what it learned from, if any
TOLD = 200  # letters of that
SAMPLES = "data/sample_inputs/model.pt"  # pickled example inputs, which torch can do without


def read_program_source(request: Request) -> Source:
    """The program that a .pt2 file holds, at the shape that it was exported with; where that is open, at the card's."""
    path, card = request.file(), request.card()
    program = read_program(path)
    taken = image_of(program)
    given: Tensor = taken.meta["val"]
    known = [d if isinstance(d, int) else 0 for d in given.shape]
    nhwc, notes = is_nhwc(request.spec, taken.name, known, layout_in(taken), request.layout)
    value = given.permute(NCHW) if nhwc else given
    shape = image_sizes(value)
    free = tuple(d for d in (2, 3) if not isinstance(value.shape[d], int))
    if card.input and any(a != b and d not in free for d, (a, b) in enumerate(zip(card.input, shape, strict=True), 1)):
        raise SourceError(f"{path}: the model takes inputs of {shape}, card or flags say {tuple(card.input)}.")
    image, asked = card.input or shape, tuple(sorted({*free, *request.dynamic}))

    def read(size: tuple[int, ...]) -> GraphModule:
        own = (*size[1:], size[0]) if nhwc else size
        graph = _graph(path, at_size(program, own, promised=asked == free) if free or size != image else program)
        if nhwc:
            turn(graph)
        return graph

    graph, fixed = open_up(read, image, asked)
    notes = (*notes, *graph.meta["notes"], *fixed, *_marked(path))
    frame = _frame(program, value, image, open_sizes(graph), nhwc)
    return Source(path.stem, graph, card.override(input=image), file_hash(path), notes, frame)


def _frame(
    program: torch.export.ExportedProgram, value: Tensor, image: tuple[int, ...], free: tuple[int, ...], nhwc: bool
) -> bytes | None:
    """What stands around the network: the program's types, where they are no float32, and its layout. `free`: which
    of the image's sizes (C, H, W) are open in the file."""
    sizes = ["batch", *(WORDS[d] if d in free else s for d, s in enumerate(image, 1))]
    sizes = [sizes[d] for d in NHWC] if nhwc else sizes
    values = {n.name: n.meta.get("val") for n in program.graph.nodes}
    given = [v for name in program.graph_signature.user_outputs if isinstance(v := values.get(name), Tensor)]
    names = ["output", *(f"output_{i}" for i in range(1, len(given)))]
    outputs = [End(name, _kind(v)) for name, v in zip(names, given, strict=True)]
    return frame_of(End("input", _kind(value), tuple(sizes)), outputs, nhwc)


def _marked(path: Path) -> list[str]:
    """What has to be said of a checkpoint that real images were read for."""
    with zipfile.ZipFile(path) as archive:
        said = [i for n, i in entries(archive, capacity(path)).items() if n.partition("/")[2] == f"extra/{REAL_IMAGES}"]
        told = [archive.read(info).decode(errors="replace")[:TOLD] for info in said]
    return [f"not data-free: real images were read for its weights, {text!r}" for text in told]


def _kind(value: Tensor) -> str:
    """The type of a tensor, as ONNX calls it."""
    return tensor_adapters.from_torch_dtype(value.dtype).name


def read_pt2(path: Path) -> GraphModule:
    """The graph of a torch.export file; raises as `read_program` does."""
    return _graph(path, read_program(path))


def _graph(path: Path, program: torch.export.ExportedProgram) -> GraphModule:
    try:
        return from_exported(program)
    except ZaqError:
        raise
    except Exception as error:  # a program whose parts do not fit together fails wherever torch first misses one
        raise SourceError(f"{path}: its graph is damaged: {first_line(error)}") from error


def read_program(path: Path) -> torch.export.ExportedProgram:
    """The program of a torch.export file. Raises SourceError rather than unpickle, compile or import any part of it."""
    content = _rebuilt(path)
    try:
        with quiet():
            return torch.export.load(content)
    except Exception as error:
        raise SourceError(f"{path}: torch.export cannot read it: {first_line(error)}") from error


def _rebuilt(path: Path) -> io.BytesIO:
    """An archive of what was checked, in memory."""
    if not zipfile.is_zipfile(path):
        raise SourceError(f"{path}: this is no .pt2 file (it is not an archive).")
    content = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, PT2ArchiveWriter(content) as made:
            _copy(path, archive, made)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # JSON of another form than torch's
        found = str(error) if type(error) is ValueError else f"it has another form than torch's ({error!r})"
        raise SourceError(f"{path}: this .pt2 file is refused: {found}.") from error
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path}: this archive is damaged: {first_line(error)}") from error
    content.seek(0)
    return content


def _copy(path: Path, archive: zipfile.ZipFile, made: PT2ArchiveWriter) -> None:
    found = {name.partition("/")[2]: info for name, info in entries(archive, capacity(path)).items()}
    if len(found) != len(archive.infolist()):
        raise ValueError("its entries lie in more than one folder")
    if "data.pkl" in found:
        raise SourceError(f"{path}: this is a pickle, which can run any code when it is loaded. {SAVE_IT}")
    if MODEL not in found:
        raise SourceError(f"{path}: this archive holds no exported program.")
    made.write_bytes(MODEL, json.dumps(check_program(plain_json(archive.read(found[MODEL])))).encode())
    made.write_bytes(SAMPLES, b"")
    for folder, about in STORES.items():
        config = plain_json(archive.read(found[about]))
        sizes = {n.removeprefix(folder): i.file_size for n, i in found.items() if n.startswith(folder)}
        made.write_bytes(about, json.dumps(config).encode())
        for entry in check_weights(config, sizes):
            made.write_bytes(folder + entry, archive.read(found[folder + entry]))
