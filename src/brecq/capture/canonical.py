"""One spelling for one thing: layers written as products with a parameter, and writes into slices.

    addmm, mm, matmul, inner, tensordot, einsum of an activation and a parameter    → linear
    convolution, the general one                                                    → conv1d, conv2d, conv3d, ...
    squeeze of all dimensions, or of some of another size than 1  → of those that go
    average pooling of sequences                    → of pictures one pixel high, for which there are integer kernels
    the largest value of all, by adaptive pooling   → amax
    copy, fill, zero (what writing into a slice leaves behind; they have no derivative)  → expand, full

A product is a linear layer if no index runs over both operands and the result: a matrix for each head is none.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node

from brecq.graph import ops
from brecq.graph.dataflow import constants

aten = ops.aten


_SYMBOLS = {
    "__and__": aten.bitwise_and, "__or__": aten.bitwise_or, "__xor__": aten.bitwise_xor,
    "__lshift__": aten.bitwise_left_shift, "__rshift__": aten.bitwise_right_shift,
}  # fmt: skip
"""`a & b` and the like under their names."""


def canonicalize(module: GraphModule) -> None:
    """Rewrite a captured graph in place; it computes the same."""
    for node in module.graph.nodes:
        named = _SYMBOLS.get(ops.op_name(node)) if node.op == "call_function" else None
        if named is not None:
            node.target = named.Tensor if isinstance(node.args[1], Node) else _of_number(named)
    fixed = constants(module.graph)
    for node in list(module.graph.nodes):
        if node.target is aten.convolution.default:
            _convolution(module, node)
        elif node.target in _SQUEEZES:
            _squeeze(module, node)
        elif node.target in (aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default):
            _average(module, node)
        elif node.target in (aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default):
            _largest(module, node)
        elif node.target in _PRODUCTS:
            _PRODUCTS[node.target](_Rewriter(module, node, fixed), node)
    for node in list(module.graph.nodes):
        if node.target is aten.linear.default:
            _keep_axes(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _of_number(packet: Any) -> Any:
    """The variant of an operator that takes a tensor and a number."""
    return getattr(packet, "Scalar" if "Scalar" in packet.overloads() else "Tensor_Scalar")


def spell_out_writes(module: GraphModule) -> None:
    """`copy`, `fill` and `zero`, which writing into a slice leaves behind, become expansions and filled tensors."""
    for node in list(module.graph.nodes):
        if node.target is aten.copy.default:
            target, source = node.args[:2]
            with module.graph.inserting_before(node):
                new = _like(module, source, target)
        elif node.target in (aten.fill.Tensor, aten.fill.Scalar, aten.zero.default):
            value = node.args[1] if len(node.args) > 1 else 0
            with module.graph.inserting_before(node):
                if isinstance(value, Node):
                    new = _like(module, value, node.args[0])
                else:
                    new = _call(module, node, aten.full_like.default, node.args[0], value)
        else:
            continue
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)


def _like(module: GraphModule, source: Node, target: Node) -> Node:
    """`source` in the shape and dtype of `target`."""
    have, want = source.meta["val"], target.meta["val"]
    if have.dtype != want.dtype:
        source = _call(module, target, aten._to_copy.default, source, dtype=want.dtype)
        source.meta["val"] = have.to(want.dtype)
    if have.shape != want.shape:
        source = _call(module, target, aten.expand_as.default, source, target)
    return source


def _call(module: GraphModule, origin: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    node = module.graph.call_function(target, args, kwargs)
    node.meta = dict(origin.meta)
    return node


def _convolution(module: GraphModule, node: Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    rank = len(stride)  # type: ignore[arg-type]
    with module.graph.inserting_before(node):
        if transposed:
            target = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
            new = _call(module, node, target[rank], x, weight, bias, stride, padding, output_padding, groups, dilation)
        else:
            plain = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
            new = _call(module, node, plain[rank], x, weight, bias, stride, padding, dilation, groups)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _squeeze(module: GraphModule, node: Node) -> None:
    """Name the dimensions that go. PyTorch passes over those of another size; samples are one dimension even alone."""
    source: Any = node.args[0]
    sizes = source.meta["val"].shape
    dims: Any = node.args[1] if len(node.args) > 1 else range(len(sizes))
    asked = [dims] if isinstance(dims, int) else list(dims)
    gone = [dim for dim in asked if len(sizes) and isinstance(sizes[dim], int) and sizes[dim] == 1]
    if gone == asked:
        return
    if gone:
        node.args, node.target = (source, gone), aten.squeeze.dims
        return
    node.replace_all_uses_with(source)
    module.graph.erase_node(node)


_SQUEEZES = {aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}


def _average(module: GraphModule, node: Node) -> None:
    """Of [N, C, L]: the sequence becomes a picture, and what is left of it one again."""
    source: Any = node.args[0]
    if source.meta["val"].dim() != 3:
        return
    sizes: list[Any] = list(node.args[1:])
    if node.target is aten.avg_pool1d.default:
        sizes += [[], [0]][len(sizes) - 1 :]  # stride (that of the kernel) and padding, where they are left out
        along = [[1, *sizes[0]], [1, *(sizes[1] or sizes[0])], [0, *sizes[2]], *sizes[3:]]
        target: Any = aten.avg_pool2d.default
    else:
        along, target = [[1, *sizes[0]]], aten.adaptive_avg_pool2d.default
    with module.graph.inserting_before(node):
        picture = _call(module, source, aten.unsqueeze.default, source, -2)
        picture.meta["val"] = source.meta["val"].unsqueeze(-2)
        pooled = _call(module, node, target, picture, *along)
        pooled.meta["val"] = node.meta["val"].unsqueeze(-2)
        new = _call(module, node, aten.squeeze.dims, pooled, [-2])
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _largest(module: GraphModule, node: Node) -> None:
    """One value a channel, whose place nobody asks for."""
    source: Any = node.args[0]
    sizes: Any = node.args[1]
    used = list(node.users)
    if any(size != 1 for size in sizes) or any(user.args[1] != 0 for user in used):
        return
    with module.graph.inserting_before(node):
        new = _call(module, node, aten.amax.default, source, list(range(-len(sizes), 0)), True)
    new.meta["val"] = node.meta["val"][0]
    for user in used:
        user.replace_all_uses_with(new)
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _keep_axes(module: GraphModule, node: Node) -> None:
    """`view(-1, C)`, linear, `view(N, T, D)`: the linear layer takes [N, T, C] as it is."""
    rows: Any = node.args[0]
    user = next(iter(node.users), None)
    if rows.target not in _VIEWS or user is None or len(node.users) != 1 or user.target not in _VIEWS:
        return
    source: Any = rows.args[0]
    before, flat, after = source.meta["val"].shape, rows.meta["val"].shape, user.meta["val"].shape
    same = list(map(str, before[:-1])) == list(map(str, after[:-1]))
    if len(flat) != 2 or len(before) < 3 or not same or before[-1] != flat[-1]:
        return
    with module.graph.inserting_before(node):
        new = _call(module, node, aten.linear.default, source, *node.args[1:])
    new.meta["val"] = user.meta["val"]
    user.replace_all_uses_with(new)
    module.graph.erase_node(user)
    module.graph.erase_node(node)


_VIEWS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints}


class _Rewriter:
    """Rewrites one product into a linear layer, if it is one."""

    def __init__(self, module: GraphModule, node: Node, fixed: set[Node]) -> None:
        self.module, self.node, self.fixed = module, node, fixed

    def contract(self, a: Node, b: Node, indices: tuple[str, str, str], bias: Node | None = None) -> None:
        """Replace the node by a linear layer; `indices` label the axes of `a`, `b` and the result, as in einsum."""
        left, right, result = indices
        if (a in self.fixed) == (b in self.fixed):
            return
        if a in self.fixed:
            a, b, left, right = b, a, right, left
        weight: Any = b.meta["val"]
        summed = [i for i in right if i in left and i not in result]
        free = [i for i in right if i not in left]
        kept = [i for i in left if i not in right]
        distinct = all(len(set(part)) == len(part) for part in indices)
        if not distinct or set(result) != {*free, *kept} or len(summed) + len(free) != len(right) or not summed:
            return
        if not weight.is_floating_point() or not free or len(kept) < 1:
            return
        if any(not isinstance(size, int) for size in weight.shape):
            return
        with self.module.graph.inserting_before(self.node):
            x = self._arranged(a, left, kept, summed)
            w = self._arranged(b, right, free, summed)
            if len(free) > 1:
                outputs = [weight.shape[right.index(i)] for i in free]
                w = self._do(aten.reshape.default, w, [-1, w.meta["val"].shape[-1]])
            y = self._do(aten.linear.default, x, w, bias) if bias is not None else self._do(aten.linear.default, x, w)
            if len(free) > 1:
                y = self._do(aten.unflatten.int, y, -1, outputs)
            if list(result) != kept + free:
                y = self._do(aten.permute.default, y, [(kept + free).index(i) for i in result])
        self._finish(y)

    def _arranged(self, node: Node, axes: str, first: list[str], last: list[str]) -> Node:
        """Axes `first` in front, axes `last` flattened into one behind them."""
        order = [axes.index(i) for i in first + last]
        if order != list(range(len(order))):
            if node.target is aten.t.default or (node.target is aten.permute.default and len(order) == 2):
                node = node.args[0]  # type: ignore[assignment]
            else:
                node = self._do(aten.permute.default, node, order)
        return node if len(last) == 1 else self._do(aten.flatten.using_ints, node, len(first), -1)

    def _do(self, target: Any, *args: Any) -> Node:
        new = _call(self.module, self.node, target, *args)
        real = torch.fx.map_arg(args, lambda node: node.meta["val"])
        with enable_python_dispatcher():  # as torch.export: some operators have no other symbolic shapes
            new.meta["val"] = target(*real)
        if all(source in self.fixed for source in new.all_input_nodes):
            self.fixed.add(new)
        return new

    def _finish(self, new: Node) -> None:
        self.node.replace_all_uses_with(new)
        self.module.graph.erase_node(self.node)


def _rank(node: Any) -> int:
    return int(node.meta["val"].dim())


def _matmul(rewriter: _Rewriter, node: Node) -> None:
    a, b = node.args[:2]
    letters = string.ascii_letters
    left, right = _rank(a), _rank(b)
    if min(left, right) < 2 or (left > 2 and right > 2):
        return
    if right == 2:  # [..., i] · [i, o]
        kept, i, o = letters[: left - 1], letters[left], letters[left + 1]
        rewriter.contract(a, b, (kept + i, i + o, kept + o))  # type: ignore[arg-type]
    else:  # [o, i] · [..., i, n]
        kept, i, o, n = letters[: right - 2], letters[right], letters[right + 1], letters[right + 2]
        rewriter.contract(a, b, (o + i, kept + i + n, kept + o + n))  # type: ignore[arg-type]


def _addmm(rewriter: _Rewriter, node: Node) -> None:
    bias, a, b = node.args[:3]
    plain = node.kwargs.get("beta", 1) == 1 and node.kwargs.get("alpha", 1) == 1
    if plain and bias in rewriter.fixed and _rank(bias) == 1 and a not in rewriter.fixed:
        rewriter.contract(a, b, ("ni", "io", "no"), bias)  # type: ignore[arg-type]


def _inner(rewriter: _Rewriter, node: Node) -> None:
    a, b = node.args[:2]
    if _rank(b) == 2 and _rank(a) >= 1:
        kept = string.ascii_letters[: _rank(a) - 1]
        rewriter.contract(a, b, (f"{kept}Y", "ZY", f"{kept}Z"))  # type: ignore[arg-type]


def _tensordot(rewriter: _Rewriter, node: Node) -> None:
    a, b, axes_a, axes_b = node.args[:4]
    left, right = list(string.ascii_lowercase[: _rank(a)]), list(string.ascii_uppercase[: _rank(b)])
    for i, j in zip(axes_a, axes_b, strict=True):  # type: ignore[arg-type]
        right[j] = left[i]
    result = [i for i in left if i not in right] + [i for i in right if i not in left]
    rewriter.contract(a, b, ("".join(left), "".join(right), "".join(result)))  # type: ignore[arg-type]


def _einsum(rewriter: _Rewriter, node: Node) -> None:
    equation, operands = str(node.args[0]), list(node.args[1])  # type: ignore[arg-type]
    text = equation.replace(" ", "")
    if len(operands) != 2:
        return
    a, b = operands
    inputs, arrow, result = text.partition("->")
    left, _, right = inputs.partition(",")
    spare = "".join(letter for letter in string.ascii_letters if letter not in text)
    dots = max((_rank(op) - len(part) + 3 for op, part in ((a, left), (b, right)) if "..." in part), default=0)
    if "..." in left and "..." in right:
        return
    left, right, result = (part.replace("...", spare[:dots]) for part in (left, right, result))
    if not arrow:
        every = left + right
        result = spare[:dots] + "".join(sorted(i for i in set(every) - set(spare[:dots]) if every.count(i) == 1))
    rewriter.contract(a, b, (left, right, result))


_PRODUCTS: dict[Any, Callable[[_Rewriter, Node], None]] = {
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.addmm.default: _addmm,
    aten.inner.default: _inner,
    aten.tensordot.default: _tensordot,
    aten.einsum.default: _einsum,
}
