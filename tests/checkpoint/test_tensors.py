from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from brecq.checkpoint.tensors import IntegerTensor, PackedWeight, collect_tensors, decode, encode
from brecq.converted.convert import to_program
from brecq.errors import CheckpointError


def test_every_constant_is_collected_at_its_bit_width(converted: GraphModule) -> None:
    tensors = collect_tensors(converted)
    layers = {"stem": (8, -127), "body": (2, -2), "up": (4, -8), "head": (3, -4)}
    assert set(tensors) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {
        "norm.weight",
        "norm.bias",
    }
    for layer, (bits, low) in layers.items():
        weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        assert isinstance(weight, PackedWeight)
        assert isinstance(bias, IntegerTensor)
        assert (weight.bits, weight.low, weight.axis) == (bits, low, int(layer == "up"))
        assert torch.equal(weight.codes(), converted.get_buffer(f"{layer}.weight"))
        assert torch.equal(bias.codes, converted.get_buffer(f"{layer}.bias"))
    assert torch.equal(tensors["norm.weight"], converted.get_parameter("norm.weight"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codes", [], r"codes is '\[\]', not str"), ("bits", None, "bits is 'None', not int"),
        ("low", "x", "low is 'x', not int"), ("zero_point", {}, "zero_point is '{}', not str or null"),
        ("axis", 0.5, "axis is '0.5', not int or null"), ("shape", [2, -1], "not a list of sizes"),
        ("shape", None, "not a list of sizes"), ("kind", True, "kind is 'True'"),
    ],
)  # fmt: skip
def test_descriptions_that_are_none_name_the_field(
    converted: GraphModule, field: str, value: object, message: str
) -> None:
    arrays, table = encode(collect_tensors(converted))
    table["up.weight"][field] = value
    with pytest.raises(CheckpointError, match=f"^up.weight: .*{message}"):
        decode(arrays, table)
    with pytest.raises(CheckpointError, match="description is 'None', not an object"):
        decode(arrays, {**table, "up.weight": None})  # type: ignore[dict-item]


def test_dequantize_equals_the_program(converted: GraphModule) -> None:
    tensors = collect_tensors(converted)
    values: dict[str, Tensor] = {}

    class Record(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            value = super().run_node(node)
            if "dequantize_per_channel" in str(node.target):
                values[str(node.args[0].target)] = value
            return value

    Record(converted).run(torch.randn(1, 3, 8, 8))
    assert len(values) == 8
    for name, value in values.items():
        assert torch.equal(tensors[name].dequantize(), value)


def test_encode_and_decode_are_inverse(converted: GraphModule) -> None:
    tensors = collect_tensors(converted)
    arrays, table = encode(tensors)
    again = decode(arrays, table)
    assert set(again) == set(tensors)
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            assert torch.equal(again[name], value)
            continue
        assert type(again[name]) is type(value)
        assert again[name].axis == value.axis
        for field in ("scale", "zero_point"):
            assert torch.equal(getattr(again[name], field), getattr(value, field))
        assert torch.equal(again[name].dequantize(), value.dequantize())


@pytest.mark.parametrize(
    ("zero_point", "bits"), [([0, 0], None), ([-2, 1], 2), ([-3, 1], None), ([-2, 2], None), ([0, 1], 2)]
)
def test_zero_points_are_packed_where_they_fit(zero_point: list[int], bits: int | None) -> None:
    weight = PackedWeight(
        torch.zeros(2, dtype=torch.uint8), 2, -2, (2, 4), torch.ones(2), torch.tensor(zero_point), axis=0
    )
    arrays, table = encode({"w": weight})
    assert table["w"]["zero_point_bits"] == bits
    assert ("w.zero_point" in arrays) == any(zero_point)
    assert decode(arrays, table)["w"].zero_point.tolist() == zero_point


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_one_scale_per_tensor(dtype: torch.dtype) -> None:
    class PerTensor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randint(0, 16, (3, 5), dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.ops.quantized_decomposed.dequantize_per_tensor.default(self.weight, 0.3, 3, 0, 15, dtype)
            return torch.nn.functional.linear(x, weight)

    module = to_program(PerTensor(), (torch.randn(2, 5),)).module()
    weight = collect_tensors(module)["weight"]
    assert isinstance(weight, PackedWeight)
    assert (weight.bits, weight.axis) == (4, None)
    assert torch.equal(weight.dequantize(), module(torch.eye(5)).t())
    assert torch.equal(decode(*encode({"weight": weight}))["weight"].dequantize(), weight.dequantize())


def test_views_are_stored_alone() -> None:
    base = torch.arange(12.0)
    arrays, _ = encode({"a": base[:4], "b": base[2:6], "c": base.view(3, 4).t()})
    assert arrays["a"].untyped_storage().nbytes() == 16
    assert all(array.is_contiguous() for array in arrays.values())


def test_names_that_collide(converted: GraphModule) -> None:
    tensors = collect_tensors(converted)
    with pytest.raises(CheckpointError, match=r"stem\.weight\.codes"):
        encode(tensors | {"stem.weight.codes": torch.ones(1)})


def test_one_constant_with_two_scales(converted: GraphModule) -> None:
    nodes = {str(n.args[0].target): n for n in converted.graph.nodes if "dequantize_per_channel" in str(n.target)}
    stem, head = nodes["stem.weight"], nodes["head.weight"]
    head.args = (stem.args[0], *head.args[1:])
    with pytest.raises(CheckpointError, match=r"stem\.weight is dequantized with two different scales"):
        collect_tensors(converted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": "nowhere"}, "'nowhere' is missing"),
        ({"bits": 3}, "bytes of codes"),
        ({"kind": "sparse"}, "unknown kind 'sparse'"),
    ],
)
def test_a_table_that_does_not_fit(converted: GraphModule, change: dict[str, object], message: str) -> None:
    arrays, table = encode(collect_tensors(converted))
    table["body.weight"] |= change
    with pytest.raises(CheckpointError, match=rf"body\.weight: .*{message}.*"):
        decode(arrays, table)
