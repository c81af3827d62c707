"""A model as one functional graph. The only user of torch.export."""

import copy
import gc
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from zaq.config.bounds import ELEMENTS
from zaq.errors import SourceError, TraceError
from zaq.ir.nodes import attribute, image_sizes, input_node, moves, open_sizes, source_line
from zaq.ir.ops import CLAMPS
from zaq.ir.regions import inline_regions
from zaq.ir.spelling import DECOMPOSED, one_spelling

__all__ = ["at_size", "cast_note", "export_program", "from_exported", "image_of", "quiet", "trace"]

OTHER_FLOATS = {torch.float16, torch.bfloat16, torch.float64}
HALVES = {torch.float16, torch.bfloat16}
DIMENSIONS = (3, 4, 5)  # of a batch of lines, of images, of volumes
aten = torch.ops.aten
SAME = {  # what makes no new number, beside moves and clamps
    aten.clone.default, aten.detach.default, aten.contiguous.default, aten.flip.default, aten.cat.default,
    aten.stack.default, aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.where.self,
    aten.repeat.default, aten.maximum.default, aten.minimum.default, aten.constant_pad_nd.default, aten.pad.default,
}  # fmt: skip


def trace(model: nn.Module, example_input: Tensor | dict[str, Tensor]) -> GraphModule:
    """Capture a model as a functional graph in eval mode; the batch stays dynamic, H and W are the example's.

    The graph returns one tensor, or a tuple of the tensors in whatever structure the model returns.

    The model is copied, never changed. `example_input` is the tensor (N, C, H, W) that `forward` takes first, or a
    dict of keyword arguments. A model in half or double precision becomes one in float32, whatever the example is in.
    Raises TraceError, naming the line of the model that cannot be captured, or what is asked of its input.
    """
    model = _unwrap(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "a TorchScript module cannot be traced; load the original nn.Module and save it with torch.export.save("
            "torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), 'model.pt2')."
        )
    args, kwargs = ((), example_input) if isinstance(example_input, dict) else ((example_input,), {})
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    args, kwargs = pytree.tree_map(lambda x: _as_example(x, own), (args, kwargs))
    given = pytree.tree_leaves((args, kwargs))
    if len(given) == 1 and isinstance(given[0], Tensor):
        _require_images(given[0], "example_input")
    batch = {0: torch.export.Dim.AUTO}
    shapes: Any = {name: batch for name in kwargs} if kwargs else (batch,)
    model = copy.deepcopy(model).eval()
    try:
        with quiet():
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise TraceError(f"{type(model).__name__} cannot be traced: {_reason(error)}") from error
    return from_exported(exported)


def from_exported(exported: torch.export.ExportedProgram) -> GraphModule:
    """The functional graph of an exported program: in-place operations and aliases resolved, guards dropped.

    What it computes in half or double precision it computes in float32, and an image of whole numbers counts as the
    same numbers in float32. The graph's `meta["notes"]` are what a report has to say of all this. Regions of the
    program (`zaq.ir.regions`) are put in their places in the program itself.
    Raises TraceError if the program was exported with a fixed batch or takes anything but one image batch.
    """
    with quiet(), torch.no_grad():
        halves = inline_regions(exported)
        module = _functional(exported).module(check_guards=False)
        notes = _cast(module, halves)
    graph = module.graph
    _drop_checks(graph)
    _require_room(module, graph)
    with quiet(), torch.no_grad():
        _take_whole_images(graph)
        notes += one_spelling(module)
    inputs = [n for n in graph.nodes if n.op == "placeholder" and n.users]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
        names = ", ".join(n.name for n in inputs) or "none"
        raise TraceError(f"the model must take one tensor, a batch of images; it takes: {names}.")
    _require_images(inputs[0].meta["val"], inputs[0].name)
    _flatten_outputs(graph)
    result = GraphModule(module, graph)  # ep.module() refuses train() and eval(); a plain GraphModule takes them
    result.requires_grad_(True)
    result.meta["notes"] = tuple(notes)
    sizes = inputs[0].meta["val"].shape
    if len(sizes) == 4 and (free := tuple(d for d in (2, 3) if not isinstance(sizes[d], int))):
        input_node(result).meta["open"] = free
    _require_finite(result)
    _require_any_batch(result)
    return result


@contextmanager
def quiet() -> Iterator[None]:
    """torch.export warns of torch's own internals (deprecated tree specs and the like): nothing a user can do about.
    It makes very many small objects that all stay: looking through them for garbage takes a fifth of its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collects:
            gc.enable()


def image_of(exported: torch.export.ExportedProgram) -> Node:
    """The node of the one batch of images that a program takes; its sizes may be open.

    Raises TraceError for a program that takes anything else.
    """
    names = exported.graph_signature.user_inputs
    inputs = [n for n in exported.graph.nodes if n.op == "placeholder" and n.name in names and n.users]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
        found = ", ".join(n.name for n in inputs) or "none"
        raise TraceError(f"the model must take one tensor, a batch of images; it takes: {found}.")
    image: Node = inputs[0]
    _require_images(image.meta["val"], image.name)
    return image


def at_size(
    exported: torch.export.ExportedProgram, image: tuple[int, ...], promised: bool
) -> torch.export.ExportedProgram:
    """A program for images of one size (C, H, W) where its own is open or another, the batch still open.

    `promised`: the program leaves open what differs, and may say which sizes it takes.
    Raises TraceError where it does not run at that size, or says that it does not.
    """
    value = image_of(exported).meta["val"]
    if len(exported.graph_signature.user_inputs) != 1:
        raise TraceError("a program of open sizes must take a batch of images and nothing else.")
    example = torch.zeros(2, *image, dtype=value.dtype)
    args, kwargs = pytree.tree_unflatten([example], exported.call_spec.in_spec)
    shapes: Any = pytree.tree_map(lambda _: {0: torch.export.Dim.AUTO}, {**kwargs} or args)
    try:
        with quiet(), torch.no_grad():
            if promised:
                exported.module()(*args, **kwargs)
            module = exported.module(check_guards=False)
            _drop_checks(module.graph)
            plain = GraphModule(module, module.graph)  # without the hook that holds sizes against the example's
            return torch.export.export(plain, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise TraceError(f"the program does not run at {image}: {_reason(error)}") from error


def _drop_checks(graph: Graph) -> None:
    """Take out what only asks whether sizes are those of the example, or in its range."""
    for node in reversed(graph.nodes):
        target = str(node.target)
        if node.op in ("call_module", "call_function") and ("_guards_fn" in target or "_assert" in target):
            graph.erase_node(node)


def export_program(gm: GraphModule) -> torch.export.ExportedProgram:
    """A graph as an exported program again, with a dynamic batch, and the sizes open that are (`open_sizes`)."""
    example = torch.zeros(2, *image_sizes(input_node(gm).meta["val"]))
    dims = {0: torch.export.Dim("batch"), **dict.fromkeys(open_sizes(gm), torch.export.Dim.AUTO)}
    with quiet(), torch.no_grad():
        return torch.export.export(gm, (example,), dynamic_shapes=(dims,))


def _functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without in-place operations, whose results would be read before they are there. It takes as long as
    tracing did, so a program that has none stays what it is.
    """
    targets = {n.target for n in exported.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}
    if not any(t._schema.is_mutable or t in DECOMPOSED for t in targets):
        return exported
    table = torch.export.default_decompositions()
    functional: torch.export.ExportedProgram = exported.run_decompositions(
        {op: table[op] for op in targets.intersection(DECOMPOSED)}
    )
    return functional


def _flatten_outputs(graph: Graph) -> None:
    """One tensor in; one tensor out, or a tuple of the tensors in the user's structure, without what is none."""
    end = next(iter(reversed(graph.nodes)))
    leaves = [n for n in pytree.tree_leaves(end.args) if isinstance(n, Node) and isinstance(n.meta.get("val"), Tensor)]
    end.args = (leaves[0] if len(leaves) == 1 else tuple(leaves),)
    graph.set_codegen(CodeGen())


def cast_note(tensors: Iterable[Tensor]) -> list[str]:
    """What a report has to say of a model in half or double precision; nothing of one in float32."""
    found = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.dtype in OTHER_FLOATS}))
    return [f"the model is stored in {found}; it counts as the same numbers in float32"] if found else []


def _cast(module: GraphModule, halves: list[str]) -> list[str]:
    """Make a graph one of float32, in place, if any of its parameters, buffers or inputs is of another precision, or
    anything in it is of half. `halves`: the precisions of `autocast`. Returns what has to be said of that.
    """
    values = {n: v for n in module.graph.nodes if isinstance(v := n.meta.get("val"), Tensor)}
    inputs = [v for n, v in values.items() if n.op == "placeholder"]
    notes = cast_note([*module.state_dict().values(), *inputs])
    inside = sorted({*halves, *(str(v.dtype).removeprefix("torch.") for v in values.values() if v.dtype in HALVES)})
    if not notes and inside:
        notes = [f"the model computes in {', '.join(inside)} in places; here it computes in float32 there, too"]
    if not notes:
        return []
    for node in module.graph.nodes:
        if node.op == "get_attr":  # a new parameter, buffer or constant, for the program holds the old one too
            owner, _, name = str(node.target).rpartition(".")
            value = attribute(module, str(node.target))
            new = nn.Parameter(_float32(value)) if isinstance(value, nn.Parameter) else _float32(value)
            setattr(module.get_submodule(owner), name, new)
        node.args, node.kwargs = pytree.tree_map(_float32, (node.args, node.kwargs))
        node.meta["val"] = pytree.tree_map(_float32, node.meta.get("val"))
    return notes


def _take_whole_images(graph: Graph) -> None:
    """Let an image of whole numbers, a uint8 input, be the same numbers in float32 (in place), which its bytes were to
    become anyway: what is rounded and compared is floats. The input's `meta["stored"]` is the type it had.

    Raises TraceError where the model computes with the bytes themselves, which wrap at 256 as floats do not.
    """
    whole = {n for n in graph.nodes if n.op == "placeholder" and n.users and _is_bytes(n)}
    for node in list(graph.nodes):
        if node in whole or (_is_bytes(node) and whole.intersection(node.all_input_nodes)):
            if node not in whole and not (moves(node) or node.target in CLAMPS | SAME):
                raise TraceError(
                    "the model computes with the whole numbers of a uint8 image, which wrap at 256 "
                    f"({source_line(node)}); make them floats first: x = x.float()."
                )
            whole.add(node)
    for node in whole:
        if node.op == "placeholder":
            node.meta["stored"] = node.meta["val"].dtype
        node.meta["val"] = node.meta["val"].float()


def _is_bytes(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype is torch.uint8


def _float32(value: Any) -> Any:
    """A tensor, or the name of a type, of another precision as one of float32; anything else as it is."""
    if isinstance(value, torch.dtype):
        return torch.float32 if value in OTHER_FLOATS else value
    return value.float() if isinstance(value, Tensor) and value.dtype in OTHER_FLOATS else value


def _as_example(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An image batch in the model's precision. torch.export takes a batch of one for a constant, so show it two."""
    x = x.to(dtype) if x.is_floating_point() else x
    return x if x.dim() == 0 or x.shape[0] > 1 else torch.cat([x, x])


def _unwrap(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrap(model.module)
    original = getattr(model, "_orig_mod", None)  # torch.compile
    return _unwrap(original) if isinstance(original, nn.Module) else model


def _reason(error: BaseException) -> str:
    """What torch.export says, shortened, with the last line of code that is not torch's own."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    ours = __file__
    users = [f for f in frames if f.filename != ours]
    where = f" at {users[-1].filename}:{users[-1].lineno}: {users[-1].line}" if users else ""
    text = str(error).strip().splitlines() or [type(error).__name__]
    kind = "its control flow depends on the data" if "data-dependent" in str(error) else text[0]
    return f"{kind}{where}. Rewrite that line without a branch on tensor values, or export a part of the model."


class _Sizes(Interpreter):
    """Runs a graph on shapes alone, and remembers its largest tensor."""

    largest = 0

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.largest = max([self.largest, *(v.numel() for v in pytree.tree_leaves(value) if isinstance(v, Tensor))])
        return value


def _require_room(gm: nn.Module, graph: Graph) -> None:
    """A few bytes of a file may ask for a tensor of any size: look at shapes alone before constants are folded."""
    values = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
    sizes = _Sizes(gm, graph=graph)
    with quiet(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), suppress(Exception):
        # What fails here, as where shapes depend on values, is said by the run behind it.
        images = [torch.zeros(2, *image_sizes(v)) if isinstance(v, Tensor) else v for v in values]
        sizes.run(*images, enable_io_processing=False)
    if sizes.largest > 2 * ELEMENTS:
        size = min(sizes.largest, 10**99) / 2
        raise TraceError(
            f"the model makes {size:.3g} numbers of an image in one tensor; at most {ELEMENTS:.3g} are taken."
        )


def _require_images(x: Tensor, name: str) -> None:
    """Raises TraceError for an input that is no batch of images, nor of lines or volumes."""
    if x.dim() not in DIMENSIONS or not (x.is_floating_point() or x.dtype is torch.uint8):
        kind, shape = str(x.dtype).removeprefix("torch."), ", ".join(["N", *map(str, x.shape[1:])][: x.dim()])
        raise TraceError(
            f"the model must take images (N, C, H, W) in floating point or uint8 (or (N, C, L), (N, C, D, H, W)); "
            f"{name!r} is {kind} of the shape ({shape}). "
            "Put a layer that reshapes images before the model, or quantize the part of it that takes images."
        )


def _require_any_batch(gm: GraphModule) -> None:
    """A program may name its batch in its input, or only in a reshape on the way: try one of another size."""
    batch = input_node(gm).meta["val"].shape[0]
    traced = batch if isinstance(batch, int) else getattr(batch.node, "hint", None) or 2
    fixed = isinstance(batch, int) or _failure(gm, traced + 1)
    if not isinstance(batch, int) and fixed and (reason := _failure(gm, traced)):
        raise TraceError(f"the model was captured, and does not run on {traced} images of zeros: {reason}.")
    if fixed:
        raise TraceError(
            f"the batch of input {input_node(gm).name!r} is fixed to {traced} samples; "
            "export it with dynamic_shapes=({0: torch.export.Dim.AUTO},), and without a reshape that names the batch "
            "size."
        )


def _failure(gm: GraphModule, count: int) -> str:
    """What a graph says against a batch of so many zeros; empty where it takes it."""
    value = input_node(gm).meta["val"]
    try:
        with torch.no_grad():
            gm(torch.zeros(count, *image_sizes(value), dtype=value.dtype))
    except (RuntimeError, IndexError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def _require_finite(gm: GraphModule) -> None:
    for name, value in gm.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise SourceError(f"{name} holds {count} NaN or infinite values of {value.numel()}; the model is broken.")
