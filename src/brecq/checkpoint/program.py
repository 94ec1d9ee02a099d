"""A converted program as plain data: its graph as JSON, its tensors by name. Nothing in it can run code.

docs/format.md describes `program.json`.
"""

from __future__ import annotations

import copy
import math
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from brecq.checkpoint.tensors import IntegerTensor, PackedWeight, Stored
from brecq.converted.convert import DEQUANTIZE
from brecq.converted.quantized import Quantized
from brecq.errors import CheckpointError
from brecq.graph.fold import get_tensor
from brecq.graph.ops import input_names
from brecq.names import is_variable, unwritable
from brecq.storage.operators import find_operator, operator_name

FORMAT, VERSION = "brecq program", 1
BATCH = "batch"
"""What stands for the batch size in the shape of an input."""

_ENUMS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def describe(graph: GraphModule, example_inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The program as plain JSON values; tensors are named, not held.

    Args:
        example_inputs: one for each input, [N, ...].

    Raises:
        CheckpointError: a node, an argument or the output is of a kind that a file cannot hold.
    """
    inputs = (node for node in graph.graph.nodes if node.op == "placeholder")
    names: dict[Node, str] = dict(zip(inputs, input_names(graph), strict=True))
    nodes = [_describe_node(node, names.get(node)) for node in graph.graph.nodes if node.op != "output"]
    examples = [
        {"dtype": str(value.dtype).removeprefix("torch."), "shape": _sizes(node, value)}
        for node, value in zip(names, example_inputs, strict=True)
    ]
    result = {"format": FORMAT, "version": VERSION, "inputs": examples, "constants": _constants(graph)}
    return {**result, "nodes": nodes, "output": _encode(_output(graph), "the output")}


def check(graph: GraphModule, example_inputs: Sequence[Tensor]) -> None:
    """Raise `CheckpointError` if `graph`, whose quantizers may still be modules, holds what a file cannot hold, or
    what could not be loaded again."""
    for node in graph.graph.nodes:
        if node.op == "call_function":
            _describe_node(node)
    _encode(_output(graph), "the output")
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    free = [_free(_sizes(node, value)) for node, value in zip(inputs, example_inputs, strict=True)]
    bare = GraphModule(graph, copy.deepcopy(graph.graph))
    for node in list(bare.graph.nodes):
        node.meta = {}  # as in a program that was read
        if node.op == "call_module":
            node.replace_all_uses_with(node.args[0])
            bare.graph.erase_node(node)
    try:
        _note_shapes(bare, example_inputs, free)
    except CheckpointError as error:
        raise CheckpointError(
            f"the result could not be loaded again: {error}; quantize the parts around it (submodule=...)"
        ) from error


def rebuild(described: Mapping[str, Any], tensors: Mapping[str, Stored]) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """The program, computing bit for bit what the described one did, with shapes noted, and example inputs: zeros of
    a batch of two.

    Raises:
        CheckpointError: the description is not one, or does not fit the tensors; the message names the part.
    """
    if described.get("format") != FORMAT or described.get("version") != VERSION:
        raise CheckpointError(f"version is {described.get('version')!r}; this brecq reads {VERSION}")
    root = nn.Module()
    constants = _field(described, "constants", dict)
    for name, entry in constants.items():
        _put(root, name, _constant(name, entry, tensors))
    graph = Graph()
    nodes: dict[str, Node] = {}
    for entry in _field(described, "nodes", list):
        node = _rebuild_node(graph, set(constants), entry, nodes)
        if node.name in nodes:
            raise CheckpointError(f"two nodes have the name {node.name!r}")
        nodes[node.name] = node
    graph.output(_decode(described.get("output"), nodes, "the output"))
    inputs = _field(described, "inputs", list)
    examples = tuple(_example(entry) for entry in inputs)
    if len(examples) != sum(node.op == "placeholder" for node in nodes.values()):
        raise CheckpointError(f"inputs describes {len(examples)} of the program's inputs")
    module = Quantized(root, graph).eval()
    _note_shapes(module, examples, [_free(entry["shape"]) for entry in inputs])
    return module, examples


def _sizes(node: Node, example: Tensor) -> list[Any]:
    """Of an input: the batch, numbers, and in a list of its own each size that may be another one."""
    known = node.meta.get("val")
    free = [isinstance(known, Tensor) and isinstance(size, torch.SymInt) for size in getattr(known, "shape", ())]
    sizes = [[size] if free[dim : dim + 1] == [True] else size for dim, size in enumerate(example.shape)]
    return [BATCH, *sizes[1:]] if sizes else []


def _free(shape: Sequence[Any]) -> list[int]:
    """The dimensions of an input that may have another size."""
    return [dim for dim, size in enumerate(shape) if dim == 0 or isinstance(size, list)]


def _describe_node(node: Node, name_of_input: str | None = None) -> dict[str, Any]:
    if node.op == "placeholder":
        return {"name": node.name, "input": name_of_input}
    if node.op == "get_attr":
        return {"name": node.name, "constant": node.target}
    operator = operator_name(node.target) if node.op == "call_function" else None
    if operator is None:
        raise CheckpointError(
            f"{node.name}: the operator {node.target} cannot be saved: it is not one of PyTorch's own; replace it, or "
            "quantize the parts around it (submodule=...)"
        )
    described: dict[str, Any] = {"name": node.name, "operator": operator, "args": _encode(list(node.args), node.name)}
    if node.kwargs:
        described["kwargs"] = {key: _encode(value, node.name) for key, value in node.kwargs.items()}
    stack = node.meta.get("nn_module_stack")
    if stack:
        path, kind = list(stack.values())[-1]
        described["module"] = path.split("@")[0]
        described["module_type"] = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return described


def _rebuild_node(graph: Graph, constants: set[str], entry: Any, nodes: Mapping[str, Node]) -> Node:
    if not isinstance(entry, dict):
        raise CheckpointError(f"a node is {entry!r}, not an object")
    name = _name(entry.get("name"))
    if "input" in entry:
        node = graph.placeholder(_name(entry["input"]))
    elif "constant" in entry:
        path = str(entry["constant"])
        if path not in constants:
            raise CheckpointError(f"{name}: there is no constant {path!r}")
        node = graph.get_attr(path)
    else:
        function = find_operator(str(entry.get("operator")))
        if function is None:
            raise CheckpointError(f"{name}: operator is {entry.get('operator')!r}, which no program may call")
        args = _decode(_field(entry, "args", list), nodes, name)
        kwargs = entry.get("kwargs", {})
        if not isinstance(kwargs, dict):
            raise CheckpointError(f"{name}: kwargs is {kwargs!r}, not an object")
        node = graph.call_function(
            function, tuple(args), {_name(key): _decode(value, nodes, name) for key, value in kwargs.items()}
        )
        if "module" in entry:
            path, kind = str(entry["module"]), str(entry.get("module_type"))
            node.meta["nn_module_stack"] = {f"L__self__{path}": (path, kind)}
    node.name = name
    return node


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, torch.device):
        return {"device": "cpu"}  # where tensors are loaded to
    for kind, type_ in _ENUMS.items():
        if isinstance(value, type_):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = {_name(key): _encode(item, where) for key, item in zip(value._fields, value, strict=True)}
        return {"namedtuple": _name(type(value).__name__), "fields": fields}
    if isinstance(value, (tuple, list)):
        items = [_encode(item, where) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
        return {"dict": [[key, _encode(item, where)] for key, item in value.items()]}
    raise CheckpointError(f"{where}: a {type(value).__name__} cannot be saved ({str(value)[:80]})")


def _decode(value: Any, nodes: Mapping[str, Node], where: str) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes, where) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()), (None, None))
    if kind == "node" and isinstance(content, str) and content in nodes:
        return nodes[content]
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "device" and content == "cpu":
        return torch.device("cpu")
    if kind in _ENUMS and isinstance(content, str) and isinstance(getattr(torch, content, None), _ENUMS[kind]):
        return getattr(torch, content)
    if kind == "tuple" and isinstance(content, list):
        return tuple(_decode(item, nodes, where) for item in content)
    if kind == "dict" and isinstance(content, list) and all(isinstance(x, list) and len(x) == 2 for x in content):
        return {key: _decode(item, nodes, where) for key, item in content if isinstance(key, (str, int))}
    fields = value.get("fields")
    if kind == "namedtuple" and isinstance(fields, dict):
        kept = namedtuple(_name(content), [_name(field) for field in fields])  # type: ignore[misc]
        return kept(*(_decode(item, nodes, where) for item in fields.values()))
    raise CheckpointError(f"{where}: {str(value)[:80]} is no value of a program")


def _output(graph: GraphModule) -> Any:
    """What the program returns, with nodes for tensors."""
    (node,) = (node for node in graph.graph.nodes if node.op == "output")
    info = getattr(graph.graph._codegen, "pytree_info", None)
    if info is None or info.out_spec is None:
        return node.args[0]
    leaves = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
    return _unflatten(info.out_spec, iter(leaves))


def _unflatten(spec: Any, leaves: Any) -> Any:
    """As `pytree.tree_unflatten`, but classes that are registered as mappings of names become dictionaries."""
    if spec.type is None:
        return next(leaves)
    children = [_unflatten(child, leaves) for child in spec._children]
    if spec.type in (tuple, list):
        return spec.type(children)
    if pytree.is_namedtuple_class(spec.type) or pytree.is_namedtuple_class(spec._context):
        kind = spec.type if hasattr(spec.type, "_fields") else spec._context
        return kind(*children)
    context = spec._context
    for names in (context, next(iter(context), None) if isinstance(context, (list, tuple)) else None):
        if isinstance(names, (list, tuple)) and len(names) == len(children):
            return dict(zip(names, children, strict=True))
    raise CheckpointError(f"the output: a {spec.type.__name__} cannot be saved; return tuples or dictionaries")


def _constants(graph: GraphModule) -> dict[str, dict[str, str]]:
    """For each constant the tensor it is a part of, as `collect_tensors` names them, and its dtype."""
    found: dict[str, dict[str, str]] = {}
    inverse = set(DEQUANTIZE.values())
    for node in graph.graph.nodes:
        if node.target in inverse and isinstance(node.args[0], Node) and node.args[0].op == "get_attr":
            owner = str(node.args[0].target)
            parts = {"codes": node.args[0], "scale": node.args[1], "zero_point": node.args[2]}
            for part, source in parts.items():
                if isinstance(source, Node):
                    found[str(source.target)] = {"tensor": owner, "part": part}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = get_tensor(graph, str(node.target))
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{node.name}: a {type(value).__name__} among the constants cannot be saved")
            entry = found.setdefault(str(node.target), {"tensor": str(node.target), "part": "value"})
            entry["dtype"] = str(value.dtype).removeprefix("torch.")
    return found


def _constant(name: str, entry: Any, tensors: Mapping[str, Stored]) -> Tensor:
    stored = tensors.get(str(entry.get("tensor"))) if isinstance(entry, dict) else None
    dtype = getattr(torch, str(entry.get("dtype")), None) if isinstance(entry, dict) else None
    if stored is None or not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"constants: {name!r} is {entry!r}, which is no part of a tensor")
    value: Any = None
    if isinstance(stored, Tensor):
        value = stored if entry.get("part") == "value" else None
    elif entry.get("part") == "codes":
        value = stored.codes() if isinstance(stored, PackedWeight) else stored.codes
    elif entry.get("part") in ("scale", "zero_point"):
        assert isinstance(stored, (PackedWeight, IntegerTensor))
        value = getattr(stored, entry["part"])
    if value is None:
        raise CheckpointError(f"constants: {name!r} is the part {entry.get('part')!r}, which its tensor has not")
    return value.to(dtype)


def _put(root: nn.Module, path: str, value: Tensor) -> None:
    if not isinstance(path, str) or unwritable(path) is not None:  # it becomes a part of the program's text
        raise CheckpointError(f"constants: {path!r} is no name")
    *owners, last = path.split(".")
    for owner in owners:
        if owner not in root._modules:
            try:
                root.add_module(owner, nn.Module())
            except KeyError as error:
                raise CheckpointError(f"constants: {path!r} is no name: {error}") from None
        root = root.get_submodule(owner)
    try:
        root.register_buffer(last, value)
    except KeyError as error:
        raise CheckpointError(f"constants: {path!r} is no name: {error}") from None


def _example(entry: Any) -> Tensor:
    shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
    kind = getattr(torch, str(dtype), None)
    if not isinstance(kind, torch.dtype) or not isinstance(shape, list):
        raise CheckpointError(f"inputs: {entry!r} is no input")
    sizes = [2 if size == BATCH else size[0] if isinstance(size, list) and len(size) == 1 else size for size in shape]
    if not all(type(size) is int and 0 <= size < 1 << 31 for size in sizes):
        raise CheckpointError(f"inputs: the shape is {shape!r}")
    return torch.zeros(sizes, dtype=kind)


def _note_shapes(module: GraphModule, examples: Sequence[Tensor], free: Sequence[Sequence[int]]) -> None:
    """Give every node its value's shape and dtype (`meta["val"]`), with a symbol for each size in `free`."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs = []
    for value, dims in zip(examples, free, strict=True):
        sizes = [DimDynamic.DYNAMIC if dim in dims else DimDynamic.STATIC for dim in range(value.dim())]
        inputs.append(mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(sizes)))
    try:
        with torch.no_grad(), enable_python_dispatcher():  # as torch.export: LSTM and bilinear have no other shapes
            FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
    except Exception as error:  # operators raise many unrelated types for arguments that do not fit them
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"the program does not run: {first}") from error


def _field(values: Mapping[str, Any], name: str, kind: Callable[..., Any]) -> Any:
    value = values.get(name)
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise CheckpointError(f"{name} is {str(value)[:80]!r}, not a {kind.__name__}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not is_variable(value):
        raise CheckpointError(f"{str(value)[:80]!r} is no name")
    return value
