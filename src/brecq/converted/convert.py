"""Convert: the prepared graph becomes a reference program with integer weights and quantize/dequantize operators.

`pt2e` places the operators; the integer constants are computed here. PT2E's own folding divides in float32, so that
int32 biases beyond 2^23 miss their code and saturated ones change sign, and it keeps the float copies of all weights
below the root module.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase

from brecq.converted.quantized import Quantized
from brecq.errors import BrecqError, CaptureError
from brecq.graph import outputs
from brecq.graph.constants import constant_values
from brecq.graph.fold import get_tensor, set_buffer
from brecq.graph.locations import without_locations
from brecq.graph.shapes import batch_dim, dynamic_shapes, one_batch
from brecq.placement import pt2e
from brecq.placement.pt2e import decomposed
from brecq.quant.fake_quant import BiasFakeQuantize, WeightFakeQuantize

DEQUANTIZE = {
    decomposed.quantize_per_channel.default: decomposed.dequantize_per_channel.default,
    decomposed.quantize_per_tensor.default: decomposed.dequantize_per_tensor.default,
}
"""Each static quantize operator and its inverse."""


@dataclass(frozen=True)
class _Constant:
    """A constant that a fake-quantizer or observer reads.

    The value of one of our fake-quantizers is computed when it is asked for, one at a time: all of them together would
    be as large as the float network. Others settle on their grid when they see the constant, so that they see it once.
    """

    source: Tensor
    reader: WeightFakeQuantize | BiasFakeQuantize | None
    exact: bool  # the value is already on the integer grid: a fake-quantizer's, not an observer's

    @classmethod
    def read(cls, source: Tensor, reader: Any) -> _Constant:
        if isinstance(reader, (WeightFakeQuantize, BiasFakeQuantize)):
            return cls(source.detach(), reader, True)
        exact = isinstance(reader, FakeQuantizeBase)
        return cls((reader(source) if exact else source).detach(), None, exact)

    def value(self) -> Tensor:
        """After fake quantization."""
        value: Tensor = self.source if self.reader is None else self.reader(self.source)
        return value.detach()

    def codes(self) -> Tensor | None:
        """Where the fake-quantizer knows them."""
        return None if self.reader is None else self.reader.integers(self.source)


def convert(prepared: GraphModule) -> Quantized:
    """The converted program of a prepared graph whose fake-quantizers are in hard-rounding mode.

    `prepared` is left as it is. Fake-quantizers with `enabled == False` vanish, and what they read stays float.
    Weights and biases become integer buffers under the names of the float tensors they replace, with buffers
    `<name>_scale` and `<name>_zero_point` beside them; tensors that the program does not read are dropped.
    The program computes bit for bit what `prepared` computes, on the device that `prepared` is on.

    Raises:
        BrecqError: a fake-quantizer's output on a constant is not on its own integer grid.
    """
    module = _shallow_copy(prepared)
    _remove_disabled(module)
    constants = _bake(module)
    module = pt2e.convert_observers(module)
    _fold(module, constants)
    module.graph.eliminate_dead_code()
    return Quantized(module, module.graph).eval()  # a new one takes over only what its graph reads


def to_program(converted: nn.Module, example_inputs: Sequence[Any]) -> ExportedProgram:
    """Export a converted graph; dimension 0 of every input tensor is the dynamic batch.

    The program keeps neither the example inputs nor source locations, and returns plain containers (torch.fx has
    immutable ones of its own): it is a file to hand over.

    Args:
        example_inputs: positional inputs of the graph, tensors of shape [N, ...] with N at least 2.

    Raises:
        CaptureError: the graph cannot be exported with a dynamic batch.
    """
    inputs = tuple(example_inputs)
    reason: Exception | None = None
    with warnings.catch_warnings(), without_locations(), torch.no_grad(), one_batch(converted):
        warnings.simplefilter("ignore")
        for low in (1, 2):  # as in capture: some graphs hold only for batches of at least two
            try:
                shapes = dynamic_shapes(converted, inputs, {}, batch_dim(low))
                program = torch.export.export(converted, inputs, dynamic_shapes=shapes, strict=False)
                break
            except Exception as error:  # torch.export raises many unrelated types
                reason = error
        else:
            raise CaptureError(
                f"the converted program cannot be exported with a dynamic batch: {reason}\n"
                "Give example inputs with the same batch size of at least 2 in each."
            ) from reason
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    signature = program.module_call_graph[0].signature
    assert signature is not None
    signature.out_spec = outputs.plain_structure(signature.out_spec)
    return program


def _shallow_copy(prepared: GraphModule) -> GraphModule:
    """A graph of its own over the same tensors and fake-quantizers."""
    module = GraphModule(prepared, copy.deepcopy(prepared.graph))
    module.meta = dict(prepared.meta)
    return module


def _remove_disabled(module: GraphModule) -> None:
    for node, observer in pt2e.observers(module):
        if not getattr(observer, "enabled", True):
            source: Any = node.args[0]
            if isinstance(observer, BiasFakeQuantize) and observer.learned is not None:
                source = _add_learned(module, node, observer.learned)
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _add_learned(module: GraphModule, node: Node, value: Tensor) -> Node:
    """A float constant of its own for a learned bias that is not quantized, under the bias's name if that is free."""
    origin = _root(node.args[0])  # type: ignore[arg-type]
    others = {str(n.target) for n in module.graph.nodes if n.op == "get_attr" and n is not origin}
    shared = {str(origin.target)} if any(user is not node for user in origin.users) else set()
    name = _free_name(str(origin.target), others | shared)
    set_buffer(module, name, value)
    with module.graph.inserting_before(node):
        attribute = module.graph.get_attr(name)
    attribute.meta = dict(node.meta)
    return attribute


@torch.no_grad()
def _bake(module: GraphModule) -> dict[str, _Constant]:
    """Give each fake-quantizer of a constant a float attribute of its own, which `_fold` turns into integers."""
    values = constant_values(module)
    readers = [(node, observer) for node, observer in pt2e.observers(module) if node.args[0] in values]
    nodes = {node for node, _ in readers}
    targets = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    plain: set[Node] = set()
    for node in reversed(values):
        if any(user in plain or (user not in values and user not in nodes) for user in node.users):
            plain.add(node)
    taken = {str(node.target) for node in plain if node.op == "get_attr"}
    constants: dict[str, _Constant] = {}
    names: dict[tuple[str, str], str] = {}
    for node, observer in readers:
        source: Any = node.args[0]
        origin = str(_root(source).target)
        key = (str(node.target), source.name if source.op != "get_attr" else origin)
        if key not in names:
            # The float name is free unless something else still reads the float tensor.
            names[key] = name = _free_name(origin, (targets - {origin}) | taken | constants.keys())
            constants[name] = _Constant.read(values[source], observer)
            set_buffer(module, name, constants[name].source)
        with module.graph.inserting_before(node):
            attribute = module.graph.get_attr(names[key])
        attribute.meta = dict(source.meta)
        node.args = (attribute, *node.args[1:])
    module.graph.eliminate_dead_code()
    module.recompile()
    return constants


def _root(node: Node) -> Node:
    """The first parameter or buffer that a constant is computed from."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return node


def _free_name(name: str, taken: set[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


@torch.no_grad()
def _fold(module: GraphModule, constants: dict[str, _Constant]) -> None:
    """Replace each `quantize(constant)` by an integer constant, and name its scale and zero point after it."""
    codes: dict[str, Tensor] = {}
    names: dict[tuple[str, str], str] = {}
    taken = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for node in list(module.graph.nodes):
        if node.target not in DEQUANTIZE or node.args[0].op != "get_attr" or node.args[0].target not in constants:
            continue
        name = str(node.args[0].target)
        if name not in codes:
            values = [get_tensor(module, str(a.target)) if isinstance(a, Node) else a for a in node.args[1:]]
            codes[name] = _quantize(name, constants[name], node.target, values)
        for argument, suffix in zip(node.args[1:3], ("scale", "zero_point"), strict=True):
            if isinstance(argument, Node) and (name, suffix) not in names:
                names[name, suffix] = _free_name(f"{name}_{suffix}", taken)
                taken.add(names[name, suffix])
                set_buffer(module, names[name, suffix], get_tensor(module, str(argument.target)))
            if isinstance(argument, Node):
                argument.target = names[name, suffix]
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
    for name, constant in constants.items():
        set_buffer(module, name, codes[name] if name in codes else constant.value())
    module.graph.lint()
    module.recompile()


def _quantize(name: str, constant: _Constant, operator: Any, qparams: Sequence[Any]) -> Tensor:
    """Integer codes of a constant; `qparams` are the arguments of the quantize `operator` after its input.

    A fake-quantized value comes back from its codes bit for bit: q = round(x / s) + z in float64, or, where the
    float32 product q·s was rounded from a code beyond 2^24, the neighbouring float32 integer that yields it.
    """
    scale, zero_point, *axis, low, high, dtype = qparams
    value, known = constant.value(), constant.codes()
    if known is not None:
        return _checked(name, known.to(dtype), value, operator, qparams)
    if axis:
        shape = [1] * value.dim()
        shape[axis[0]] = -1
        scale, zero_point = scale.view(shape), zero_point.view(shape)
    steps = (value.double() / (scale.double() if isinstance(scale, Tensor) else scale)).round()
    codes = (steps + zero_point).clamp(low, high).to(dtype)
    if not constant.exact:
        return codes
    for direction in (float("inf"), float("-inf")):
        wrong = DEQUANTIZE[operator](codes, *qparams) != value
        if not bool(wrong.any()):
            return codes
        limit = torch.full((), direction, dtype=torch.float32, device=value.device)
        near = (torch.nextafter(steps.float(), limit).double() + zero_point).clamp(low, high).to(dtype)
        codes = torch.where(wrong, near, codes)
    return _checked(name, codes, value, operator, qparams)


def _checked(name: str, codes: Tensor, value: Tensor, operator: Any, qparams: Sequence[Any]) -> Tensor:
    """`codes`, if they dequantize to `value` bit for bit."""
    restored = DEQUANTIZE[operator](codes, *qparams)
    if torch.equal(restored, value):
        return codes
    difference = (restored - value).abs()
    raise BrecqError(
        f"{name}: its fake-quantizer's output differs from its integer codes by up to {difference.max().item():.3g} "
        f"in {int(difference.count_nonzero())} of {value.numel()} elements; "
        "set it to hard rounding, and let it compute (q - zero_point) * scale in float32"
    )
