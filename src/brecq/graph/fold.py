"""Graph clean-up after capture: batch norm folded into the layer before it, no-ops dropped."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from brecq.graph.ops import aten, kind, op_name

_NO_OPS = {
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
}  # fmt: skip
_BATCH_NORMS = {aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default}


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


def normalize_batch_norm(module: GraphModule) -> None:
    """Turn the three-output batch norm of `run_decompositions` into the one-output eval-mode operator."""
    for node in list(module.graph.nodes):
        if node.target not in _BATCH_NORMS:
            continue
        x, weight, bias, mean, var, *rest = node.args
        with module.graph.inserting_before(node):
            new = module.graph.call_function(
                aten.batch_norm.default, (x, weight, bias, mean, var, False, rest[-2], rest[-1], False)
            )
        new.meta = dict(node.meta)
        for user in list(node.users):
            if user.target is not operator.getitem or user.args[1] != 0:
                raise AssertionError(f"unexpected use of batch norm statistics: {user.format_node()}")
            new.meta["val"] = user.meta["val"]
            user.replace_all_uses_with(new)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


@torch.no_grad()
def fold_batch_norm(module: GraphModule) -> None:
    """Fold each batch norm into the weighted operator in front of it, where nothing else would change by that: its
    output has no other user, its weight and bias no other reader, and the norm's channels are its outputs."""
    users: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            users[str(node.target)] = users.get(str(node.target), 0) + len(node.users)
    for norm in list(module.graph.nodes):
        if norm.target is not aten.batch_norm.default:
            continue
        layer, *statistics = norm.args[:5]
        if kind(layer) is None or len(layer.users) != 1 or not _normalizes_outputs(layer):
            continue
        if any(node is not None and node.op != "get_attr" for node in statistics):
            continue
        constants = [node for node in layer.args[1:3] if node is not None]
        if all(node.op == "get_attr" and users[str(node.target)] == 1 for node in constants):
            found = [None if n is None else get_tensor(module, str(n.target)) for n in statistics]
            _fold_one(module, layer, norm, found, eps=norm.args[7])
    clean(module)


@torch.no_grad()
def fold_affine(module: GraphModule) -> None:
    """Fold a product and a sum with constants, one for each channel or one in all, into the weighted operator before
    them: a batch norm that was frozen into numbers. Nothing else may read what is between, nor the weight and bias."""
    readers: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    for layer in list(module.graph.nodes):
        product = _only_user(layer, aten.mul.Tensor) if kind(layer) else None
        total = None if product is None else _only_user(product, aten.add.Tensor)
        if product is None or total is None or not _normalizes_outputs(layer) or total.kwargs:
            continue
        factor, offset = (_per_channel(module, node, layer) for node in (product, total))
        constants = [node for node in layer.args[1:3] if node is not None]
        alone = all(node.op == "get_attr" and readers[str(node.target)] == 1 for node in constants)
        if factor is None or offset is None or not alone:
            continue
        ones, zeros = torch.ones_like(factor), torch.zeros_like(factor)
        _fold_one(module, layer, total, [factor, offset, zeros, ones], eps=0.0)
    clean(module)


def _only_user(node: Node, target: Any) -> Node | None:
    """The only reader of a node, if it is this operator with one constant operand."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) != 1 or user.target is not target:
        return None
    others = [argument for argument in user.args if argument is not node]
    return user if len(others) == 1 and isinstance(others[0], Node) and others[0].op == "get_attr" else None


def _per_channel(module: GraphModule, node: Node, layer: Node) -> Tensor | None:
    """The constant operand of a node as one number for each output channel of the layer; `None` if it is another."""
    source: Any = next(argument for argument in node.args if isinstance(argument, Node) and argument.op == "get_attr")
    value, output = get_tensor(module, str(source.target)), layer.meta["val"]
    channels = output.shape[1]
    if value.numel() == 1:
        return value.reshape(-1).expand(channels).clone()
    shape = [1] * (output.dim() - value.dim()) + list(value.shape)
    wanted = [channels if dim == 1 else 1 for dim in range(output.dim())]
    return value.reshape(-1) if value.dim() <= output.dim() and shape == wanted else None


def _normalizes_outputs(layer: Node) -> bool:
    """True if dimension 1 of a layer's output, that of a batch norm's channels, counts the layer's outputs.

    A linear layer's are the last dimension, which is dimension 1 of [N, C] but not of [N, T, C]; an unbatched
    convolution's dimension 0. Both have it there when the output has as many dimensions as the weight.
    """
    return bool(layer.meta["val"].dim() == layer.args[1].meta["val"].dim())  # type: ignore[union-attr]


def _fold_one(module: GraphModule, layer: Node, norm: Node, statistics: Sequence[Tensor | None], eps: float) -> None:
    """Put the norm's scale, shift, mean and variance (`statistics`) into the layer, in the place of `norm`."""
    gamma, beta, mean, var = statistics
    assert mean is not None
    assert var is not None
    gamma = torch.ones_like(mean) if gamma is None else gamma
    beta = torch.zeros_like(mean) if beta is None else beta
    weight_node: Any = layer.args[1]
    bias_node: Any = layer.args[2] if len(layer.args) > 2 else None
    weight = get_tensor(module, weight_node.target)
    bias = None if bias_node is None else get_tensor(module, bias_node.target)
    weight, new_bias = _fused(layer, weight, bias, mean, var, eps, gamma, beta)
    set_tensor(module, weight_node.target, weight.detach().clone())
    if bias_node is not None:
        set_tensor(module, bias_node.target, new_bias.detach().clone())
    else:
        stem, _, last = str(weight_node.target).rpartition(".")
        owner = module.get_submodule(stem) if stem else module
        name = "bias" if last == "weight" and getattr(owner, "bias", None) is None else f"{last}_bias"
        target = f"{stem}.{name}" if stem else name
        if getattr(owner, name, None) is None and name in owner._parameters:
            del owner._parameters[name]
        set_tensor(module, target, new_bias.detach().clone())
        with module.graph.inserting_before(layer):
            bias_node = module.graph.get_attr(target)
        bias_node.meta["val"] = new_bias
        layer.args = (*layer.args[:2], bias_node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)


def _fused(
    layer: Node,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    gamma: Tensor,
    beta: Tensor,
) -> tuple[Tensor, Tensor]:
    layer_kind = kind(layer)
    if layer_kind == "linear":
        return fuse_linear_bn_weights(weight, bias, mean, var, eps, gamma, beta)
    transposed = str(layer_kind).startswith("conv_transpose")
    groups = _groups(layer) if transposed else 1
    if groups == 1:
        return fuse_conv_bn_weights(weight, bias, mean, var, eps, gamma, beta, transpose=transposed)
    # A grouped transposed weight is [in, out / groups, ...]: give each group the scales of its own outputs.
    factor = (gamma * torch.rsqrt(var + eps)).view(groups, 1, -1)
    shape = weight.shape
    scaled = weight.view(groups, shape[0] // groups, shape[1], -1) * factor.unsqueeze(-1)
    bias = torch.zeros_like(mean) if bias is None else bias
    return scaled.view(shape), (bias - mean) * gamma * torch.rsqrt(var + eps) + beta


def _groups(layer: Node) -> int:
    """Groups of a (transposed) convolution node."""
    return int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]


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
