"""A functional graph: no operator writes in place.

PyTorch functionalizes by tracing the program once more, which takes three times as long as exporting it. Most programs
write in place only where nobody could tell (`relu_` behind a convolution): those writes are spelled out here, and the
program is traced again only where views or buffers are written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import GraphModule, Node

from brecq.graph import ops
from brecq.graph.dataflow import constants

aten = ops.aten

_FRESH = (ops.ELEMENTWISE | ops.WEIGHTED.keys() | ops.CONCAT) - {aten.dropout.default}
_FRESH |= {aten.max_pool2d.default, aten.layer_norm.default, aten.group_norm.default, aten.softmax.int}
"""Operators whose output is new memory."""


def functionalize(program: ExportedProgram) -> GraphModule:
    """The program as a graph module whose operators write nothing, apart from buffers, at its end."""
    module = program.module()
    fixed = constants(module.graph)
    writes = [node for node in module.graph.nodes if _is_write(node)]
    plain = all(spec.kind is OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs)
    unclear = any(_is_unclear(node) and not (node in fixed and _keeps_nothing(node)) for node in module.graph.nodes)
    if not plain or unclear or not all(map(_is_private, writes)):
        return program.run_decompositions({}).module()
    for node in list(module.graph.nodes):
        if _is_write(node):
            _spell_out(module, node)
    for node in list(module.graph.nodes):
        if ops.op_name(node) == "to" and node.op == "call_function":
            _convert(module, node)
    module.recompile()
    return module


def _is_write(node: Node) -> bool:
    return node.op == "call_function" and _schema(node) is not None and _schema(node).is_mutable


def _schema(node: Node) -> Any:
    return getattr(node.target, "_schema", None)


def _is_unclear(node: Node) -> bool:
    """Norms over the batch itself may write their statistics, which no schema tells."""
    if node.target is aten.batch_norm.default:
        return bool(node.args[5])
    return node.target is aten.instance_norm.default or isinstance(node.target, torch._ops.HigherOrderOperator)


def _keeps_nothing(node: Node) -> bool:
    """True for a batch norm without running statistics, as weights are standardized by."""
    return node.target is aten.batch_norm.default and node.args[3] is None and node.args[4] is None


def _is_private(node: Node) -> bool:
    """True if what the operator writes into was just computed, and no view of it exists."""
    target: Any = node.args[0]
    if not isinstance(target, Node) or _functional(node) is None or target.op != "call_function":
        return False
    if target.target not in _FRESH and not (_is_write(target) and _is_private(target)):
        return False
    return all(user is node or user > node or not _may_alias(user) for user in target.users)


def _may_alias(node: Node) -> bool:
    schema = _schema(node)
    if schema is None or "dropout" in ops.op_name(node):
        return True
    return not schema.is_mutable and any(result.alias_info is not None for result in schema.returns)


def _functional(node: Node) -> Any:
    """The operator that computes the same into new memory."""
    name, _, overload = str(node.target).removeprefix("aten.").partition(".")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return None if packet is None else getattr(packet, overload, None)


def _spell_out(module: GraphModule, node: Node) -> None:
    target: Any = node.args[0]
    with module.graph.inserting_before(node):
        name = ops.op_name(node).removesuffix("_")
        new = module.graph.create_node("call_function", _functional(node), node.args, node.kwargs, name)
    new.meta = dict(node.meta)
    target.replace_all_uses_with(new, delete_user_cb=lambda user: user > new and user is not node)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _convert(module: GraphModule, node: Node) -> None:
    """`to` that changes nothing is dropped, others become copies of their type."""
    source: Any = node.args[0]
    before, after = source.meta["val"], node.meta["val"]
    if before.dtype == after.dtype and before.device == after.device:
        node.replace_all_uses_with(source)
    else:
        with module.graph.inserting_before(node):
            new = module.graph.call_function(aten._to_copy.default, (source,), {"dtype": after.dtype})
            if before.device != after.device:
                new.kwargs = {**new.kwargs, "device": after.device}
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
    module.graph.erase_node(node)
