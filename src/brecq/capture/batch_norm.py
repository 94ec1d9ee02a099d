"""Batch norm, live or frozen into numbers, folded into the weighted operator before it.

What only orders a layer's outputs otherwise may stand between (a linear layer on [N, T, C] and a batch norm on
[N, C, T]); where it is undone behind the norm, it goes with it. A weight that several calls read (the encoder of a
siamese network, a head over levels) is one tensor, folded once: all of its calls must be scaled and shifted by the
same numbers. What is not folded says why.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from brecq.graph.fold import clean, get_tensor, set_tensor
from brecq.graph.ops import aten, is_size, kind, module_types

UNFOLDED = "brecq_unfolded"
"""In the metadata of a batch norm that stays, or of the product and the sum of a frozen one: what it is, and why it is
not folded."""

_RESHAPES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.dim, aten.unsqueeze.default, aten.contiguous.default, aten.clone.default,
}  # fmt: skip
_MOVES = {aten.transpose.int, aten.permute.default, *_RESHAPES}
"""Operators that a batch norm may stand behind: every element is there once, and the channels stay an axis."""

_Ends = Callable[[Node], list[tuple[Node, int | None]]]
"""What reads a layer's output, and on which axis the channels are there."""

_BATCH_NORMS = {aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default}


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
    """Fold each batch norm into the weighted operator in front of it, where nothing else would change by that; the
    others say in their metadata (`UNFOLDED`) what hinders it."""
    folded: set[Node] = set()
    for norm in list(module.graph.nodes):
        if norm.target is not aten.batch_norm.default or norm in folded:
            continue
        layer = _before(norm)
        hindrance = _hindrance(layer, _scaling(norm), _scaling, _behind)
        if hindrance:
            norm.meta[UNFOLDED] = f"batch norm, not folded: {hindrance}"
            continue
        calls = _calls(layer)
        found = [None if node is None else get_tensor(module, str(node.target)) for node in norm.args[1:5]]
        _fold_into(module, calls, found, eps=norm.args[7])
        norms = [end for call in calls for end, _ in _behind(call)]
        folded.update(norms)
        for each in norms:
            source = cast(Node, each.args[0])
            _skip(module, source, [each])
            _undo(module, source)
    clean(module)


@torch.no_grad()
def fold_affine(module: GraphModule) -> None:
    """Fold a product and a sum with constants, one for each channel or one in all, into the weighted operator before
    them: a batch norm that was frozen into numbers. Nothing else may read what is between, nor the weight and bias."""
    for layer in list(module.graph.nodes):
        calls = _calls(layer) if kind(layer) else []
        ends = [found for call in calls if (found := _product_and_sum(call)) is not None]
        if not ends or len(ends) < len(calls) or any(_axis(call) != 1 for call in calls):
            continue
        constants, *others = ([_constant(product), _constant(total)] for product, total in ends)
        if any(other != constants for other in others):
            continue
        factor, offset = (_per_channel(module, node, layer) for node in constants)
        if factor is None or offset is None:
            continue
        _fold_into(module, calls, [factor, offset, torch.zeros_like(factor), torch.ones_like(factor)], eps=0.0)
        for call, (_, end) in zip(calls, ends, strict=True):
            _skip(module, call, [end])
    _name_frozen(module)
    clean(module)


def _name_frozen(module: GraphModule) -> None:
    """Say of each product and sum with constants of the channels that stay what they are, and what hinders folding."""
    for product in module.graph.nodes:
        pair = _pair(product)
        numbers = [] if pair is None else [_per_channel(module, _constant(node), product) for node in pair]
        if (
            pair is None
            or any(each is None for each in numbers)
            or not any(get_tensor(module, str(_constant(node).target)).numel() > 1 for node in pair)
        ):
            continue
        layer = next(source for source in product.all_input_nodes if source.op != "get_attr")
        hindrance = _hindrance(layer, _frozen(product), _frozen, _right_behind)
        types = list(module_types(product).values())
        what = "frozen batch norm" if types and "norm" in types[-1].lower() else "scale and shift of each channel"
        for node in pair:
            node.meta[UNFOLDED] = f"{what}, not folded: {hindrance}"


def _calls(layer: Node) -> list[Node]:
    """All calls with a layer's weight and bias; none if these are computed, or something else reads one of them.

    A captured graph has one node for each tensor.
    """
    read = _tensors(layer)
    constants = [node for node in read if node is not None]
    calls = list(constants[0].users)
    alike = all(kind(call) == kind(layer) and _tensors(call) == read for call in calls)
    alone = all(node.op == "get_attr" and len(node.users) == len(calls) for node in constants)
    return calls if alike and alone else []


def _tensors(layer: Node) -> tuple[Any, Any]:
    """Weight and bias of a call, or `None` for no bias."""
    return layer.args[1], layer.args[2] if len(layer.args) > 2 else None


def _before(norm: Node) -> Any:
    """What a batch norm's input comes from, in front of what orders it otherwise."""
    source: Any = norm.args[0]
    while source.target in _MOVES:
        source = source.args[0]
    return source


def _readers(node: Node) -> list[Node]:
    """What reads the values of a node, and not its size alone."""
    return [user for user in node.users if not is_size(user)]


def _right_behind(layer: Node) -> list[tuple[Node, int | None]]:
    """As `_behind`, where nothing may stand between."""
    return [(user, _axis(layer)) for user in _readers(layer)]


def _behind(layer: Node) -> list[tuple[Node, int | None]]:
    """What reads a layer's output behind what orders it otherwise, and on which axis the layer's channels are there;
    `None` if they are no axis any more."""
    found: list[tuple[Node, int | None]] = []
    for node, axis in _right_behind(layer):
        while node.target in _MOVES and len(readers := _readers(node)) == 1:
            axis = None if axis is None else _moved(node, axis)
            node = readers[0]
        found.append((node, axis))
    return found


def _moved(move: Node, axis: int) -> int | None:
    """Where an operator of `_MOVES` puts an axis of its input; `None` if it joins or splits it."""
    before, after = _shapes(move)
    if move.target not in _RESHAPES:
        return _order(move).index(axis)
    # elements stay in order: an axis is the same if it is as long, and as much lies behind it
    wanted = (str(before[axis]), str(math.prod(before[axis + 1 :])))
    places = [(str(size), str(math.prod(after[place + 1 :]))) for place, size in enumerate(after)]
    return places.index(wanted) if wanted in places else None


def _shapes(move: Node) -> tuple[list[Any], list[Any]]:
    """Of its input and its output; numbers, or symbols where they depend on the batch, which are compared as text."""
    before, after = (list(cast(Node, node).meta["val"].shape) for node in (move.args[0], move))
    return before, after


def _order(move: Node) -> list[int]:
    """The axes of its input in the order of its output, of a transposition or permutation."""
    args: Any = move.args
    order = list(range(len(_shapes(move)[0])))
    if move.target is aten.permute.default:
        return [int(dim) % len(order) for dim in args[1]]
    first, second = (int(dim) % len(order) for dim in args[1:3])
    order[first], order[second] = second, first
    return order


def _undo(module: GraphModule, move: Node) -> None:
    """Drop the operators of `_MOVES` up to this one that those behind it undo, from the inside out."""
    while move.target in _MOVES and len(readers := _readers(move)) == 1:
        source, back = cast(Node, move.args[0]), readers[0]
        if back.target not in _MOVES or list(map(str, _shapes(back)[1])) != list(map(str, _shapes(move)[0])):
            return
        alike = [each.target in _RESHAPES for each in (move, back)]
        if alike == [False, False]:
            if [_order(move)[axis] for axis in _order(back)] != list(range(len(_order(move)))):
                return
        elif alike != [True, True]:
            return
        back.replace_all_uses_with(source)
        module.graph.erase_node(back)
        if not move.users:
            module.graph.erase_node(move)
        move = source


def _hindrance(layer: Any, scaling: Any, scaling_of: Callable[[Node], Any], behind: _Ends) -> str:
    """Why a batch norm cannot be folded into the layer that it stands behind; empty if it can.

    Args:
        scaling: what it is. scaling_of: what a reader of a layer is, `None` for no batch norm.
    """
    if kind(layer) is None:
        return "no convolution or linear layer is right before it"
    if scaling is None:
        return "its numbers are computed"
    if any(scaling_of(end) != scaling for end, _ in behind(layer)):
        return "what its layer puts out is read elsewhere, too"
    calls = _calls(layer)
    if not calls:
        return "the weight or bias of its layer is computed, or read elsewhere, too"
    if any(axis != 1 for call in calls for _, axis in behind(call)):
        return "it is not over the outputs of its layer"
    scalings = {scaling_of(end) for call in calls for end, _ in behind(call)}
    if None in scalings:
        return "its layer is also called without it; a copy of the layer for each use would be folded"
    if len(scalings) > 1:
        return "its layer is also called with other batch norms; a copy of the layer for each would be folded"
    return ""


def _scaling(norm: Node) -> tuple[Any, ...] | None:
    """What a batch norm is apart from its input: tensors, epsilon; `None` for one whose numbers are computed, and for
    other operators."""
    if norm.target is not aten.batch_norm.default or norm.args[5]:
        return None
    constant = all(node is None or node.op == "get_attr" for node in norm.args[1:5])  # type: ignore[union-attr]
    return (*norm.args[1:5], norm.args[7]) if constant else None


def _skip(module: GraphModule, layer: Node, norms: Sequence[Node]) -> None:
    """Let what reads one of `norms` read the layer."""
    for norm in norms:
        norm.replace_all_uses_with(layer)
        module.graph.erase_node(norm)


def _product_and_sum(layer: Node) -> tuple[Node, Node] | None:
    product = _only_user(layer, aten.mul.Tensor)
    return None if product is None else _pair(product)


def _pair(product: Node) -> tuple[Node, Node] | None:
    """A product with a constant, and the sum with another one that alone reads it."""
    if product.target is not aten.mul.Tensor or [node.op for node in product.all_input_nodes].count("get_attr") != 1:
        return None
    total = _only_user(product, aten.add.Tensor) if len(product.all_input_nodes) == 2 else None
    return None if total is None or total.kwargs else (product, total)


def _frozen(product: Node) -> tuple[Node, ...] | None:
    """What a frozen batch norm is apart from its input; `None` for other operators."""
    pair = _pair(product)
    return None if pair is None else tuple(map(_constant, pair))


def _only_user(node: Node, target: Any) -> Node | None:
    """The only reader of a node, if it is this operator with one constant operand."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) != 1 or user.target is not target:
        return None
    others = [argument for argument in user.args if argument is not node]
    return user if len(others) == 1 and isinstance(others[0], Node) and others[0].op == "get_attr" else None


def _constant(node: Node) -> Node:
    """The constant operand of what `_only_user` found."""
    return next(source for source in node.all_input_nodes if source.op == "get_attr")


def _per_channel(module: GraphModule, constant: Node, layer: Node) -> Tensor | None:
    """A constant as one number for each output channel of the layer; `None` if it is another."""
    value, output = get_tensor(module, str(constant.target)), layer.meta["val"]
    channels = output.shape[1]
    if value.numel() == 1:
        return value.reshape(-1).expand(channels).clone()
    shape = [1] * (output.dim() - value.dim()) + list(value.shape)
    wanted = [channels if dim == 1 else 1 for dim in range(output.dim())]
    return value.reshape(-1) if value.dim() <= output.dim() and shape == wanted else None


def _axis(layer: Node) -> int:
    """The axis of a layer's outputs: a linear layer's is the last one, an unbatched convolution's the first."""
    dimensions, weight = layer.meta["val"].dim(), layer.args[1].meta["val"].dim()  # type: ignore[union-attr]
    if kind(layer) == "linear":
        return int(dimensions) - 1
    return 1 if dimensions == weight else 0


def _fold_into(module: GraphModule, calls: Sequence[Node], statistics: Sequence[Tensor | None], eps: float) -> None:
    """Put a scale, shift, mean and variance (`statistics`) into the one weight and bias of several calls."""
    gamma, beta, mean, var = statistics
    assert mean is not None
    assert var is not None
    gamma = torch.ones_like(mean) if gamma is None else gamma
    beta = torch.zeros_like(mean) if beta is None else beta
    weight_node, bias_node = _tensors(calls[0])
    weight = get_tensor(module, weight_node.target)
    bias = None if bias_node is None else get_tensor(module, bias_node.target)
    weight, new_bias = _fused(calls[0], weight, bias, mean, var, eps, gamma, beta)
    set_tensor(module, weight_node.target, weight.detach().clone())
    if bias_node is not None:
        set_tensor(module, bias_node.target, new_bias.detach().clone())
        return
    bias_node = _add_bias(module, weight_node, new_bias.detach().clone())
    for call in calls:
        call.args = (*call.args[:2], bias_node, *call.args[3:])


def _add_bias(module: GraphModule, weight: Node, value: Tensor) -> Node:
    """Register `value` beside a weight, under a name that nothing has, and return its node."""
    stem, _, last = str(weight.target).rpartition(".")
    owner = module.get_submodule(stem) if stem else module
    wanted = ["bias"] if last == "weight" else []
    names = itertools.chain(wanted, [f"{last}_bias"], (f"{last}_bias_{count}" for count in itertools.count(1)))
    name = next(name for name in names if getattr(owner, name, None) is None)
    owner._parameters.pop(name, None)
    target = f"{stem}.{name}" if stem else name
    set_tensor(module, target, value)
    with module.graph.inserting_after(weight):
        node = module.graph.get_attr(target)
    node.meta["val"] = value
    return node


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
