"""Graph clean-up after capture, and the tensors of a graph: read, replaced, dropped."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from brecq.graph.ops import aten, op_name

_NO_OPS = {
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
}  # fmt: skip


def get_tensor(module: nn.Module, target: str) -> Tensor:
    """The parameter or buffer at a dotted path."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def set_tensor(module: nn.Module, target: str, value: Tensor) -> None:
    """Replace the parameter or buffer at a dotted path, or create a parameter there."""
    *path, name = target.split(".")
    owner = module.get_submodule(".".join(path))
    if name in owner._buffers:
        owner._buffers[name] = value
    else:
        if hasattr(owner, name):  # a parameter, or a constant that is a plain attribute
            delattr(owner, name)
        owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


def set_buffer(module: nn.Module, target: str, value: Tensor) -> None:
    """Make `value` the buffer at a dotted path, creating modules on the way and replacing what is there."""
    *path, name = target.split(".")
    owner = module
    for part in path:
        if not isinstance(getattr(owner, part, None), nn.Module):
            setattr(owner, part, nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, name):
        delattr(owner, name)
    owner.register_buffer(name, value)


def add_constant(graph: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    """Register `value` under a name like `name` and return a `get_attr` node for it, inserted before `before`."""
    name = name.replace(".", "_")
    unique, count = name, 0
    while hasattr(graph, unique):
        count += 1
        unique = f"{name}_{count}"
    graph.register_buffer(unique, value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(unique)
    node.meta["val"] = value
    return node


def is_guard(node: Node) -> bool:
    """True for the input checks of an exported program's module."""
    checks = node.op == "call_module" and "guard" in str(node.target)
    return checks or (node.op == "call_function" and "assert" in op_name(node))


def drop_guards(module: GraphModule) -> None:
    """Remove the input checks that an exported program's module begins with: blocks and other batch sizes run
    without them, and inputs may come by position or by name."""
    module._forward_pre_hooks.clear()
    module._forward_pre_hooks_with_kwargs.clear()
    for node in list(module.graph.nodes):
        if is_guard(node):
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def drop_writes(module: GraphModule) -> None:
    """Remove what an exported program writes back into its buffers and inputs at the end: the graph is a function, and
    the tensors are the user's."""
    for node in reversed(module.graph.nodes):
        if node.target is aten.copy_.default and node.args[0].op in ("get_attr", "placeholder"):
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def relax_views(module: GraphModule) -> None:
    """Reshape instead of view: what runs before may leave its output in another memory format than at capture."""
    for node in module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    module.recompile()


def drop_no_ops(module: GraphModule) -> None:
    """Remove dropout (eval mode), aliases, detaches and additions of nothing."""
    for node in list(module.graph.nodes):
        if node.target in _NO_OPS:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)  # dropout is random by its name: not seen as dead code
    clean(module)


def clean(module: GraphModule) -> None:
    """Remove what nothing reads, and check the graph."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unused_tensors(module)
    module.graph.lint()
    module.recompile()


def _drop_unused_tensors(module: GraphModule) -> None:
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path, owner in list(module.named_modules()):
        for store in (owner._parameters, owner._buffers):
            for name in list(store):
                full = f"{path}.{name}" if path else name
                if full not in used and store[name] is not None:
                    del store[name]
