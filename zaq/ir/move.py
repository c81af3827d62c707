"""A graph from one device to another, with all that hangs on it."""

import copy
import dataclasses
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from zaq.compute.devices import CPU

__all__ = ["device_of", "moved", "on", "onto"]

M = TypeVar("M", bound=nn.Module)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are; the CPU where it has none."""
    return next((t.device for t in chain(module.parameters(), module.buffers())), CPU)


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, modules and dataclasses of tensors, or any nest of these, on a device; modules are moved in place."""

    def leaf(one: Any) -> Any:
        if isinstance(one, Tensor):
            return one.to(device)
        if isinstance(one, nn.Module):
            return onto(one, device)
        fields = vars(one).items() if dataclasses.is_dataclass(one) and not isinstance(one, type) else ()
        found = {name: value.to(device) for name, value in fields if isinstance(value, Tensor)}
        return dataclasses.replace(one, **found) if found else one

    return pytree.tree_map(leaf, value)


def onto(module: M, device: torch.device) -> M:
    """Move a module's parameters, buffers and other tensors, in place; of a graph also the devices that its nodes name
    and what is known of them (`node.meta["bn"]`). A parameter that stands in two places stays one.
    """
    parameters: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.device != device:
                new = nn.Parameter(value.detach().to(device), value.requires_grad)
                part._parameters[name] = parameters.setdefault(id(value), new)
        tables: list[dict[str, Any]] = [part._buffers, vars(part)]
        for table in tables:
            for name, other in table.items():
                if isinstance(other, Tensor):
                    table[name] = other.to(device)
        if isinstance(part, GraphModule):
            _move_nodes(part, device)
    return module


def on(module: M, device: torch.device) -> M:
    """A module that is on a device; else a copy of it there."""
    return module if device_of(module) == device else onto(copy.deepcopy(module), device)


def _move_nodes(gm: GraphModule, device: torch.device) -> None:
    named = False
    for node in gm.graph.nodes:
        if "bn" in node.meta:
            node.meta["bn"] = moved(node.meta["bn"], device)
        if any(isinstance(a, torch.device) for a in pytree.tree_leaves((node.args, node.kwargs))):
            named = True
            node.args, node.kwargs = pytree.tree_map_only(
                torch.device, lambda _: device, (node.args, dict(node.kwargs))
            )
    if named:
        gm.recompile()
