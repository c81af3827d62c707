"""The student as the program that is stored and exported."""

import copy

import torch
from torch.fx import GraphModule, Node

from zaq.compute.devices import CPU
from zaq.ir.capture import export_program
from zaq.ir.move import onto
from zaq.ir.nodes import attribute, set_parameter
from zaq.quant.fake_quantize import BiasQuantize, FakeQuantize

__all__ = ["deployable", "program_of"]


def program_of(student: GraphModule) -> torch.export.ExportedProgram:
    """What is shipped, as a program: the checkpoint, and what the ONNX file is made from. It names no file of this
    machine, and no address in its memory, so that the same student makes the same bytes.
    """
    exported = export_program(deployable(student))
    for node in exported.graph.nodes:
        for trace in ("stack_trace", "from_node"):
            node.meta.pop(trace, None)
    return exported


def deployable(student: GraphModule) -> GraphModule:
    """A copy of the student with biases rounded, and scales that are what is read of them."""
    gm = onto(copy.deepcopy(student), CPU)
    gm.requires_grad_(False).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for node in list(gm.graph.nodes):
        if node.op != "call_module":
            continue
        module = gm.get_submodule(str(node.target))
        source = node.args[0]
        assert isinstance(source, Node)
        if isinstance(module, FakeQuantize):
            if module.inputs or module.pairs:
                values = (attribute(gm, str(n.target)) for n in node.args if isinstance(n, Node))
                module.scale.copy_(module.step(*values))
                module.pairs, module.inputs = False, ()
            node.args = node.args[:1]
        if isinstance(module, BiasQuantize):
            name = f"{str(node.target).replace('.', '_')}_rounded"
            set_parameter(gm, name, module(attribute(gm, str(source.target))))
            with gm.graph.inserting_before(node):
                node.replace_all_uses_with(gm.graph.get_attr(name))
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm
