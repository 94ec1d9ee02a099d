"""Linear layers whose weight alone is quantized, in the form that ONNX Runtime fuses to MatMulNBits.

ONNX Runtime fuses `DequantizeLinear → MatMul`, and only that: not Gemm, which two-dimensional linear layers come as.
The weight is stored transposed, [in, out]: a Transpose between the two cannot be folded for 2-bit weights (loading the
file fails).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from brecq.deploy.onnx.build import Builder, array, integer, is_constant, only_reader, producer
from brecq.deploy.onnx.neutral import DOMAIN

ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"
"""ONNX Runtime's session option: "1" computes with float32 activations, "4", its default, with int8 ones."""


def linear_layers(graph: ir.Graph, *, everywhere: bool = False) -> None:
    """Spell them `DequantizeConstant [in, out] → MatMul → Add`; `everywhere`: those with quantized inputs too."""
    build = Builder(graph)
    for node in list(graph):
        weight = _transposed_weight(node)
        if weight is None or (not everywhere and producer(node.inputs[0], "Dequantize", DOMAIN) is not None):
            continue
        out = node.outputs[0]
        inputs = [node.inputs[0], _turn(build, weight)]
        product = build.node(node, "MatMul", inputs, f"{out.name}_product", out.dtype, out.shape)
        if node.op_type == "Gemm" and len(node.inputs) > 2:
            product = build.node(node, "Add", [product, node.inputs[2]], f"{out.name}_sum", out.dtype, out.shape)
        build.replace(node, product)


def is_fused(node: ir.Node) -> bool:
    """True for a `DequantizeConstant` that `linear_layers` wrote: its product reads float activations."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "MatMul" or reader.inputs[1] is not node.outputs[0]:
        return False
    return integer(node, "axis") == 1 and producer(reader.inputs[0], "Dequantize", DOMAIN) is None


def fused_products(graph: ir.Graph) -> int:
    """How many products of a lowered graph are in the form that becomes MatMulNBits: a constant weight, dequantized,
    and activations that are not."""
    found = 0
    for node in graph:
        weight = producer(node.inputs[1], "DequantizeLinear") if node.op_type == "MatMul" else None
        if weight is not None and is_constant(weight.inputs[0]):
            found += producer(node.inputs[0], "DequantizeLinear") is None
    return found


def notes(graph: ir.Graph) -> tuple[str, ...]:
    """What a user should know about a lowered graph with such products."""
    count = fused_products(graph)
    if not count:
        return ()
    return (
        f"{count} linear layers with float activations run as MatMulNBits; ONNX Runtime rounds their inputs to 8 bits "
        f'unless the session option {ACCURACY_LEVEL} is "1"',
    )


def _transposed_weight(node: ir.Node) -> ir.Node | None:
    """The `DequantizeConstant` of a weight [out, in] that a linear layer multiplies with."""
    if node.op_type == "MatMul":
        turned = producer(node.inputs[1], "Transpose")
        return None if turned is None else producer(turned.inputs[0], "DequantizeConstant", DOMAIN)
    if node.op_type != "Gemm":
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
    return producer(node.inputs[1], "DequantizeConstant", DOMAIN) if plain and attributes.get("transB") else None


def _turn(build: Builder, weight: ir.Node) -> ir.Value:
    codes = array(weight.inputs[0])
    assert codes is not None
    attributes = {name: attribute.value for name, attribute in weight.attributes.items()} | {"axis": 1}
    stored = build.constant(f"{weight.inputs[0].name}_turned", np.ascontiguousarray(codes.T))  # type: ignore[union-attr]
    out, inputs = weight.outputs[0], [stored, *weight.inputs[1:]]
    return build.node(
        weight, "DequantizeConstant", inputs, f"{out.name}_turned", out.dtype, codes.T.shape, attributes, DOMAIN
    )
