"""Networks on devices: where one is, and how it gets to another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

CPU = torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    return next((value.device for value in (*model.parameters(), *model.buffers())), CPU)


def move(model: nn.Module, device: torch.device | str) -> None:
    """Move a network to a device, with what its graphs create there: positions, masks, zeros."""
    target = torch.device(device)
    model.to(target)
    for module in model.modules():
        if isinstance(module, GraphModule) and _retarget(module, target):
            module.recompile()


@contextmanager
def on_device(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Inside, the networks are on the device; afterwards they are back where they were."""
    with ExitStack() as stack:
        for model in models:
            home = device_of(model)
            if not _same(home, device):
                stack.callback(move, model, home)
                move(model, device)
        yield


def _same(first: torch.device, second: torch.device) -> bool:
    """Whether they are one device: `cuda` is the current one."""
    indexes = [
        torch.cuda.current_device() if d.type == "cuda" and d.index is None else d.index for d in (first, second)
    ]
    return first.type == second.type and (first.type == "cpu" or indexes[0] == indexes[1])


def _retarget(module: GraphModule, device: torch.device) -> bool:
    """Let operators that name a device create their output on `device`; whether any did."""

    def there(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    changed = False
    for node in module.graph.nodes:
        arguments = (node.args, node.kwargs)
        if any(isinstance(leaf, torch.device) and leaf != device for leaf in pytree.tree_leaves(arguments)):
            node.args, node.kwargs = pytree.tree_map(there, arguments)
            changed = True
    return changed


def on_cpu(model: nn.Module) -> nn.Module:
    """The model, or a copy of it on the CPU where it is elsewhere."""
    if device_of(model).type == "cpu":
        return model
    copied = copy.deepcopy(model)
    move(copied, CPU)
    return copied
