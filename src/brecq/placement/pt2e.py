"""PT2E: the one place that knows torchao's quantization flow from inside.

A PT2E quantizer annotates a graph: which inputs and outputs of which operators are quantized, how, and which share
their parameters. `insert_observers` puts an observer at each such place, `convert_observers` turns observers and
fake-quantizers into quantize and dequantize operators. Both stand for torchao's `prepare_pt2e` and `convert_pt2e`,
without their fusing of batch norms: that folds where a convolution is shared or read elsewhere too, which changes the
network, and searches the converted graph for the patterns of quantization-aware training, which takes a minute.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase
from torchao.quantization.pt2e.prepare import prepare
from torchao.quantization.pt2e.quantizer import (
    DuplicateDQPass,
    PortNodeMetaForQDQ,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from brecq.errors import BrecqError
from brecq.quant.affine import IntRange

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

_ANNOTATION = "quantization_annotation"
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric)

Observer = FakeQuantizeBase | ObserverBase


class SpecObserver(ObserverBase):
    """Holds the place of a fake-quantizer until `prepare` puts ours there."""

    def __init__(self, **spec: object) -> None:
        super().__init__(dtype=spec["dtype"])
        self.__dict__.update(spec)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def calculate_qparams(self, **_: object) -> None:
        raise AssertionError("replaced before it is asked")


class PerChannelSpecObserver(SpecObserver):
    """The same for weights: torchao passes `ch_axis` only to classes with PerChannel in their names."""


@dataclass(frozen=True)
class Spec:
    """What an observer asks for.

    Attributes:
        low, high: integer range; that of `dtype` where the observer names none. axis: of the channels, or `None`.
        dynamic: ranges are to be taken from every input anew. fixed: scale and zero point, where they are given.
        divides: a number that the step has to divide, if any.
    """

    dtype: torch.dtype
    low: int
    high: int
    qscheme: torch.qscheme
    axis: int | None
    dynamic: bool
    fixed: tuple[float, int] | None
    divides: float | None = None

    @property
    def per_channel(self) -> bool:
        return self.qscheme in _PER_CHANNEL


def activation_spec(
    bits: int, scheme: str, fixed: tuple[float, float] | None = None, divides: float | None = None
) -> QuantizationSpec:
    """An activation with one scale in all: uint8, or int8 around 0 where the scheme is `signed`; int16 at 16 bits.

    Args:
        fixed: step and lowest value of a grid that is given. divides: a number that the step has to divide.
    """
    range, signed = IntRange.activations(bits, signed=scheme == "signed"), scheme == "signed"
    qscheme = torch.per_tensor_affine if scheme == "asymmetric" else torch.per_tensor_symmetric
    observer: Any = SpecObserver
    if fixed is not None:
        scale, lowest = fixed
        zero_point = 0 if signed else range.low - round(lowest / scale)
        observer = SpecObserver.with_args(fixed=(scale, zero_point))
    elif divides is not None:
        observer = SpecObserver.with_args(divides=divides)
    return QuantizationSpec(range.carrier, observer, range.low, range.high, qscheme)


def weight_spec(range: IntRange, symmetric: bool, axis: int | None) -> QuantizationSpec:
    """A weight, int8, with a scale per channel along `axis`, or one in all."""
    if axis is None:
        whole = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        return QuantizationSpec(torch.int8, SpecObserver, range.low, range.high, whole)
    scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    return QuantizationSpec(torch.int8, PerChannelSpecObserver, range.low, range.high, scheme, ch_axis=axis)


def shared_with(place: Node | tuple[Node, Node]) -> SharedQuantizationSpec:
    """The same quantizer as at another place: a node's output, or the edge from a node to its reader."""
    return SharedQuantizationSpec(place)


def annotate(node: Node, inputs: Mapping[Node, Any], output: Any) -> None:
    """Note how the inputs and the output (`None`: not at all) of an operator are quantized."""
    node.meta[_ANNOTATION] = QuantizationAnnotation(
        input_qspec_map=dict(inputs), output_qspec=output, _annotated=True
    )  # fmt: skip


def insert_observers(graph: GraphModule, quantizer: Quantizer) -> GraphModule:
    """Let `quantizer` annotate a captured graph, and put an observer at every place that it chose."""
    _mark_sources(graph)
    meta = dict(graph.meta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = quantizer.transform_for_annotation(graph)
        quantizer.annotate(graph)
        quantizer.validate(graph)
        _fake_values(graph)
        wanted = [node.name for node in graph.graph.nodes if _is_output_annotated(node)]
        graph = prepare(graph, {}, is_qat=False, obs_or_fq_callback=quantizer.prepare_obs_or_fq_callback)
    graph.meta = meta  # without what torchao's own conversion would look for
    observed = {place.args[0].name for place, _ in observers(graph)}  # type: ignore[union-attr]
    lost = [name for name in wanted if name not in observed]
    if lost:
        raise BrecqError(
            f"{lost[0]} should be quantized and has no observer; this is a fault of brecq: please report it"
        )
    return graph


def _fake_values(graph: GraphModule) -> None:
    """Describe constants that capture computed as all other tensors are: without that torchao observes none of them,
    and says nothing."""
    values = [node.meta.get("val") for node in graph.graph.nodes]
    mode = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)
    for node, value in zip(graph.graph.nodes, values, strict=True):
        if mode is not None and isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            node.meta["val"] = mode.from_tensor(value, static_shapes=True)


def _is_output_annotated(node: Node) -> bool:
    found = node.meta.get(_ANNOTATION)
    return found is not None and found.output_qspec is not None and isinstance(node.meta.get("val"), Tensor)


def observers(graph: GraphModule) -> Iterator[tuple[Node, Any]]:
    """Every place with an observer or fake-quantizer; one module may be at several. The graph may be changed on the
    way."""
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, (FakeQuantizeBase, ObserverBase)):
                yield node, module


def spec_of(observer: Any) -> Spec:
    """What an observer, or the observer inside a fake-quantizer, asks for."""
    inner = getattr(observer, "activation_post_process", observer)

    def get(name: str, default: Any = None) -> Any:
        value = getattr(observer, name, None)
        return getattr(inner, name, default) if value is None else value

    dtype: torch.dtype = get("dtype")
    integer = not (dtype.is_floating_point or dtype.is_complex) and dtype not in (torch.quint8, torch.qint8)
    low, high = (torch.iinfo(dtype).min, torch.iinfo(dtype).max) if integer else (0, 0)
    least, most = get("quant_min"), get("quant_max")
    fixed = getattr(inner, "fixed", None)
    if type(inner).__name__.startswith("FixedQParams"):
        fixed = float(inner.scale), int(inner.zero_point)
    return Spec(
        dtype,
        low if least is None else int(least),
        high if most is None else int(most),
        get("qscheme", torch.per_tensor_affine),
        get("ch_axis"),
        bool(get("is_dynamic", False)),
        fixed,
        getattr(inner, "divides", None),
    )


def convert_observers(graph: GraphModule) -> GraphModule:
    """Replace every observer and fake-quantizer by a quantize and a dequantize operator, in place.

    Scales and zero points per channel become buffers. Operators that a quantizer annotated get a dequantize operator
    each, as back ends look for them.

    Raises:
        BrecqError: an observer that has no static integer grid.
    """
    names: dict[Any, tuple[Any, ...]] = {}
    for node, observer in observers(graph):
        if observer not in names:
            names[observer] = _qparams(graph, node, observer)
        with graph.graph.inserting_before(node):
            scale, zero_point, *rest = names[observer]
            kind = "tensor"
            if isinstance(scale, str):
                kind, scale, zero_point = "channel", graph.graph.get_attr(scale), graph.graph.get_attr(zero_point)
            arguments = (scale, zero_point, *rest)
            quantize, dequantize = (getattr(decomposed, f"{verb}_per_{kind}").default for verb in _VERBS)
            codes = graph.graph.call_function(quantize, (node.args[0], *arguments))
            value = graph.graph.call_function(dequantize, (codes, *arguments))
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    passes: tuple[PassBase, ...] = (DuplicateDQPass(), PortNodeMetaForQDQ())
    for each in passes:
        result = each(graph)
        assert result is not None
        graph = result.graph_module
    return graph


_VERBS = ("quantize", "dequantize")


def _qparams(graph: GraphModule, node: Node, observer: Any) -> tuple[Any, ...]:
    """Arguments of the quantize operator behind its input: names of buffers where there is a scale per channel."""
    spec = spec_of(observer)
    if spec.dynamic or spec.dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32):
        how = "dynamic" if spec.dynamic else str(spec.dtype)
        raise BrecqError(f"{node.target} asks for {how} quantization; only static integer grids can be converted")
    scale, zero_point = observer.calculate_qparams()
    limits = (spec.low, spec.high, spec.dtype)
    if not spec.per_channel:
        return (float(scale), int(zero_point), *limits)
    name = str(node.target).replace(".", "_")
    found = []
    for suffix, value in (("scale", scale), ("zero_point", zero_point)):
        unique = f"{name}_{suffix}"
        while hasattr(graph, unique):
            unique += "_"
        graph.register_buffer(unique, value.detach().clone())
        found.append(unique)
    return (*found, spec.axis, *limits)


_FUNCTIONS: dict[Any, Any] = {
    aten.add.Tensor: operator.add, aten.mul.Tensor: operator.mul, aten.cat.default: torch.cat,
    aten.conv1d.default: F.conv1d, aten.conv2d.default: F.conv2d, aten.linear.default: F.linear,
    aten.relu.default: F.relu, aten.hardtanh.default: F.hardtanh, aten.max_pool2d.default: F.max_pool2d,
    aten.adaptive_avg_pool2d.default: F.adaptive_avg_pool2d, aten.avg_pool2d.default: F.avg_pool2d,
}  # fmt: skip


def _mark_sources(module: GraphModule) -> None:
    """Note for each operator the module or function it came from, as some quantizers look for.

    Without it they go by module names, and stumble where a model calls one `ReLU` twice.
    """
    for node in module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        call, (_, kind) = stack[-1] if stack else ("", ("", ""))  # a second call has another key, `...relu@1`
        qualified = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        source = getattr(nn, qualified.rpartition(".")[2], None) if qualified.startswith("torch.nn.modules.") else None
        if node.op == "call_function" and source is not None:
            node.meta["source_fn_stack"] = [(call, source)]
        elif node.target in _FUNCTIONS:
            node.meta["source_fn_stack"] = [(node.name, _FUNCTIONS[node.target])]
