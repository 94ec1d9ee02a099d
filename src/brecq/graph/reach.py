"""Ways through a graph: which layers a tensor reaches, where a tensor came from, where an activation function ends.

Data movement and concatenation are looked through, as they keep codes.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from brecq.graph import ops
from brecq.graph.ends import is_mean

POOLING = frozenset({ops.aten.avg_pool2d.default, ops.aten.adaptive_avg_pool2d.default, ops.aten.mean.dim})


def activation_end(node: Node) -> Node:
    """The last operator of the activation function behind `node`: elementwise, of `node` alone (swish has two)."""
    inside, end, frontier = {node}, node, list(node.users)
    while frontier:
        current = frontier.pop(0)
        if current in inside or current.target not in ops.ELEMENTWISE or not ops.is_tensor(current):
            continue
        sources = [source for source in current.all_input_nodes if _is_activation(source)]
        if not all(source in inside for source in sources):
            continue
        inside.add(current)
        frontier += list(current.users)
        if all(member is current or all(user in inside for user in member.users) for member in inside):
            end = current
    return end


def origin_of(node: Node) -> Node:
    """The tensor that data movement led here."""
    while node.op == "call_function" and ops.moves(node) and isinstance(node.args[0], Node):
        source = node.args[0]
        if not ops.is_tensor(source) and not ops.moves(source):
            return node  # one of several results that an operator computes (a recurrent layer's)
        node = source
    return node


def sources_of(node: Node) -> list[Node]:
    """The tensors to quantize so that `node` is quantized: its origin, or all that a concatenation joins."""
    origin = origin_of(node)
    if origin.op == "call_function" and origin.target in ops.CONCAT:
        parts = origin.args[0]
        assert isinstance(parts, (list, tuple))
        joined = [source for part in parts if _is_activation(part) for source in sources_of(part)]  # type: ignore[arg-type]
        if len(joined) >= len(parts):
            return list(dict.fromkeys(joined))
    return [origin]


def readers_of(node: Node, layers: dict[Node, str], *, through: frozenset[object] = frozenset()) -> list[Node]:
    """Layers whose input is this tensor, directly or through data movement and concatenation."""
    found, stack, seen = [], list(node.users), {node}
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in layers:
            found.append(current)
        elif current.op == "call_function" and (ops.moves(current) or current.target in ops.CONCAT | through):
            stack.extend(current.users)
    return found


def reaches_layer(node: Node, layers: dict[Node, str]) -> bool:
    return bool(readers_of(node, layers, through=POOLING))


def before_layers(graph: GraphModule, layers: dict[Node, str]) -> set[Node]:
    """The nodes that some layer depends on, other than one that decodes a box by the mean of a distribution."""
    found: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        if node in found or (node in layers and not is_mean(node)):
            found.update(source for source in node.all_input_nodes if not ops.is_size(source))
    return found


def users_through_scaling(node: Node) -> list[Node]:
    """Users of `node`, seen through multiplication by a constant and data movement (layer scale, token reshapes)."""
    found: list[Node] = []
    for user in node.users:
        constant = user.target is ops.aten.mul.Tensor and sum(_is_activation(arg) for arg in user.args) == 1
        found += users_through_scaling(user) if constant or ops.moves(user) else [user]
    return found


def is_pooled(node: Node) -> bool:
    """True if the mean of a tensor is taken, as it is or of its elements moved."""
    moved = [node]
    for each in moved:  # which grows
        if any(user.target in POOLING for user in each.users):
            return True
        moved += [u for u in each.users if (ops.moves(u) or u.target in ops.CONCAT) and u not in moved]
    return False


def is_residual_add(node: Node) -> bool:
    """An addition of two activations (not of a constant)."""
    return node.target in ops.ADD and sum(_is_activation(arg) for arg in node.args) == 2


def _is_activation(value: object) -> bool:
    return isinstance(value, Node) and value.op != "get_attr" and ops.is_tensor(value)
