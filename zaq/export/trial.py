"""Whether a network can become a file, tried before anything is learned: a copy, rounded on noise, is exported and run.

What torch cannot export, what has no form in ONNX and what onnxruntime does not run is found in seconds then, and not
after a method's minutes.
"""

import math
import re

import onnxruntime as ort
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from zaq.config.targets import Target
from zaq.errors import TraceError, TrainingError, ZaqError
from zaq.export.ends import INPUT
from zaq.export.onnx import to_onnx
from zaq.export.program import program_of
from zaq.export.session import session
from zaq.ir.nodes import source_line
from zaq.quant.student import Student

__all__ = ["require_exportable"]

LONGEST = 240  # characters of somebody else's message
QUIET = ort.RunOptions()
QUIET.log_severity_level = 4  # what fails is said in a sentence
LITTLE = 1e-4  # of one element; what a detector says of noise, behind a sigmoid, is a thousandth
APART = 0.5  # of an output's own size: a file that is wrong is farther off, rounding a tie the other way is not


@torch.no_grad()
def require_exportable(student: Student, teacher: GraphModule, images: Tensor, target: Target) -> None:
    """Calibrate a student of `teacher` on images (N, C, H, W), export it in memory, and run it in onnxruntime on all of
    them and on one.

    Raises TraceError, with the operation that is at fault, where any of that fails or the file computes something else.
    """
    try:
        with student.watching("minmax"):
            student(images)
    except TrainingError:  # it makes no numbers of these images; of others it is told how many
        return
    try:
        exported = program_of(student.module)
    except ZaqError:
        raise
    except Exception as error:
        why = _sentence(error)
        if "batch" in why.lower():
            why = "it works for some batch sizes alone, as where a batch is stacked on itself or split"
        raise TraceError(f"the model cannot be exported: {why}. Take that part out of the model.") from error
    try:
        content = to_onnx(exported, {}, target=target)
    except ZaqError:
        raise
    except Exception as error:
        raise TraceError(
            f"the model has no form in ONNX: {_where(student, error)}. Write that part in other operations, or take it "
            "out of the model."
        ) from error
    run = session(content)
    for batch in (images, images[:1]):
        try:
            found = run.run(None, {INPUT: batch.contiguous().numpy()}, QUIET)
        except Exception as error:  # onnxruntime's own kinds derive from nothing nearer
            raise TraceError(
                f"onnxruntime does not run the model's file: {_where(student, error)}. Write that part in other "
                "operations, or take it out of the model."
            ) from error
        wanted, floats = (pytree.tree_leaves(m(batch)) for m in (student.module, teacher))
        for number, (ours, theirs, exact) in enumerate(zip(wanted, map(torch.from_numpy, found), floats, strict=True)):
            if ours.shape != theirs.shape or not _alike(ours, theirs, exact):
                raise TraceError(
                    f"output {number} of the model's file is not what the model computes: torch's exporter, or "
                    "onnxruntime, reads an operation in another sense. Report it to zaq, with the model."
                )


def _alike(ours: Tensor, theirs: Tensor, exact: Tensor) -> bool:
    """Whether student and file differ by a part of an output's size, by no more than rounding moved it, or by next to
    nothing: where a network sees nothing in noise, ties alone can do as much."""
    if not ours.is_floating_point():
        return True  # a label near a tie is either
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    gap = torch.where(same, 0, ours - theirs).double().norm()
    size, moved = (float(t.nan_to_num(0, 0, 0).double().norm()) for t in (ours, ours - exact))
    return float(gap) <= max(APART * size, moved, LITTLE * math.sqrt(ours.numel()))


def _where(student: Student, error: BaseException) -> str:
    """The node of the student that an error is about, in the user's code where that is known, and what it says."""
    causes, told = list[str](), error
    while told is not None:
        causes.append(str(told))
        told = told.__cause__  # type: ignore[assignment]
    text = "\n".join(causes)
    names = {n.name: n for n in student.module.graph.nodes if n.op == "call_function"}
    words = re.findall(r"translating node %(\w+)", text) + re.findall(r"[%'](?:node_)?(\w+)", text)
    node = next((names[w] for w in words if w in names), None)
    if node is None:
        return _sentence(error)
    line = source_line(node)
    return f"{node.name} ({node.target}{'' if line == node.name else f', {line}'}): {_sentence(error)}"


def _sentence(error: BaseException) -> str:
    """What the last cause says, in a line without colours, codes and places in other people's sources."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] .*? Status Message: (\S+\.(h|cc):\d+ )?", "", text)
    if "SymbolicTensor" in text:
        text = "a size that depends on the batch stands where ONNX takes a number"
    return (text if len(text) < LONGEST else f"{text[:LONGEST]} ...").rstrip(". ")
