"""Each simulated kernel against ONNX Runtime's own, code for code, on random grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from brecq.converted.grids import Grid
from brecq.deploy.simulate import kernels

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
session = pytest.importorskip("brecq.deploy.onnx.session", reason="needs the extra onnx")

scales = st.floats(2**-10, 0.5, width=32)
grids = st.builds(lambda scale, zero: Grid(scale, zero, 0, 255), scales, st.integers(0, 255))
few = settings(max_examples=12, deadline=None)


def run(op: str, inputs: list[Tensor], sources: list[Grid], grid: Grid, **attributes: Any) -> tuple[Tensor, list[str]]:
    """What the runtime computes for DequantizeLinear → `op` → QuantizeLinear, and the operators it did it with."""
    helper, constants, nodes = onnx.helper, [], []

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    for index, source in enumerate(sources):
        qparams = [constant(f"s{index}", np.float32(source.scale)), constant(f"z{index}", np.uint8(source.zero_point))]
        nodes.append(helper.make_node("DequantizeLinear", [f"x{index}", *qparams], [f"d{index}"]))
    nodes.append(helper.make_node(op, [f"d{index}" for index in range(len(sources))], ["y"], **attributes))
    qparams = [constant("s", np.float32(grid.scale)), constant("z", np.uint8(grid.zero_point))]
    nodes.append(helper.make_node("QuantizeLinear", ["y", *qparams], ["codes"]))
    uint8 = onnx.TensorProto.UINT8
    values = [helper.make_tensor_value_info(f"x{i}", uint8, x.shape) for i, x in enumerate(inputs)]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("codes", uint8, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    loaded = session.Session(model.SerializeToString())
    return torch.from_numpy(loaded(*(x.numpy() for x in inputs))[0]), list(loaded.kernels().operators)


def every_pair() -> tuple[Tensor, Tensor]:
    """All pairs of codes, as two tensors [1, 256, 256]."""
    codes = torch.arange(256, dtype=torch.uint8)
    a, b = torch.meshgrid(codes, codes, indexing="ij")
    return a[None].contiguous(), b[None].contiguous()


@few
@given(grids, grids, grids)
def test_add(first: Grid, second: Grid, grid: Grid) -> None:
    a, b = every_pair()
    found, operators = run("Add", [a, b], [first, second], grid)
    assert operators == ["QLinearAdd"]
    assert torch.equal(kernels.add(a, first, b, second, grid), found)


def test_add_at_a_border_that_decides_on_the_order_of_its_roundings() -> None:
    """8 - 143 and 1 on these grids sum to 7.499997, and come out as 8 (met in ResNet-20)."""
    a, b, c = Grid(0.026073817, 143, 0, 255), Grid(0.019367239, 0, 0, 255), Grid(0.030394383, 0, 0, 255)
    x, y = torch.tensor([151], dtype=torch.uint8), torch.tensor([1], dtype=torch.uint8)
    assert kernels.add(x, a, y, b, c).item() == 8
    assert run("Add", [x.repeat(64), y.repeat(64)], [a, b], c)[0].unique().item() == 8


@few
@given(grids, grids, st.floats(1.0, 600.0), st.integers(0, 255))
def test_multiply(first: Grid, second: Grid, factor: float, zero_point: int) -> None:
    a, b = every_pair()
    grid = Grid(float(np.float32(first.scale * second.scale * factor)), zero_point, 0, 255)
    found, operators = run("Mul", [a, b], [first, second], grid)
    assert operators == ["QLinearMul"]
    assert torch.equal(kernels.multiply(a, first, b, second, grid), found)


@few
@given(grids, grids, st.integers(1, 9), st.integers(1, 9))
def test_global_average(source: Grid, grid: Grid, height: int, width: int) -> None:
    codes = torch.randint(256, (3, 40, height, width), dtype=torch.uint8)
    assume(source.scale < 256 * grid.scale * height * width)  # the runtime refuses more
    found, operators = run("GlobalAveragePool", [codes], [source], grid)
    assert "QLinearGlobalAveragePool" in operators
    assert torch.equal(kernels.global_average(codes, source, grid), found)


@few
@given(grids, grids, st.integers(1, 3), st.integers(0, 1))
def test_average(source: Grid, grid: Grid, stride: int, padding: int) -> None:
    codes = torch.randint(256, (2, 8, 9, 7), dtype=torch.uint8)
    settings_ = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [padding] * 4, "count_include_pad": 1}
    found, operators = run("AveragePool", [codes], [source], grid, **settings_)
    assert "QLinearAveragePool" in operators
    pool: Callable[[Tensor], Tensor] = lambda x: F.avg_pool2d(x, 3, stride, padding)  # noqa: E731
    assert torch.equal(kernels.average(pool, codes, source, grid), found)


@few
@given(grids, grids, grids)
def test_concatenation(first: Grid, second: Grid, grid: Grid) -> None:
    a, b = every_pair()
    found, operators = run("Concat", [a, b], [first, second], grid, axis=0)
    assert operators == ["QLinearConcat"]
    assert torch.equal(torch.cat([kernels.regrid(a, first, grid), kernels.regrid(b, second, grid)]), found)


@given(st.integers(1, 4), st.integers(1, 3000), st.integers(0, 255), st.integers(-(2**30), 2**30))
def test_accumulators_are_exact(channels: int, depth: int, zero_point: int, bias: int) -> None:
    generator = torch.Generator().manual_seed(channels * depth)
    codes = torch.randint(256, (2, depth), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-127, 128, (channels, depth), generator=generator)
    biases = torch.full((1, channels), bias, dtype=torch.int32)
    grid = Grid(0.1, zero_point, 0, 255)
    found = kernels.accumulate(F.linear, codes, grid, weight.float(), biases)
    expected = (codes.long() - zero_point) @ weight.T + bias
    assert torch.equal(found.double(), expected.double())
