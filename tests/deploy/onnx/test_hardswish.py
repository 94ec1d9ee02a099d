"""Hardswish in ONNX Runtime: a product of codes, equal to the simulator's, with and without a target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, QuantResult, Recipe
from brecq.converted.grids import DEQUANTIZE, grid_of
from brecq.deploy.complete import complete
from brecq.quant.affine import IntRange
from brecq.quant.ranges import dividing

session = pytest.importorskip("brecq.deploy.onnx.session", reason="needs the extra onnx")


class Swished(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        return self.head(F.hardswish(self.body(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    model = Swished().eval()
    with torch.no_grad():
        model.stem.weight.mul_(8)
        model.body.weight.mul_(3)
    return model


@pytest.fixture(scope="module", params=[None, "onnxruntime"])
def result(request: pytest.FixtureRequest, network: nn.Module) -> QuantResult:
    recipe = Recipe.preset("fast").replace(steps=4, batch_size=8, range_candidates=10)
    torch.manual_seed(2)
    return brecq.quantize(network, torch.randn(16, 3, 8, 8), QuantConfig(8, 8, target=request.param, recipe=recipe))


def test_hardswish_is_a_product_of_codes(result: QuantResult, tmp_path: Path) -> None:
    file = brecq.export(result, tmp_path / "m.onnx").path
    run = session.load(file)
    kernels = run.kernels().operators
    assert kernels.get("QLinearMul") == 2
    assert "HardSwish" not in kernels
    assert kernels["QuantizeLinear"] == 1
    x = torch.randn(8, 3, 8, 8)
    found = brecq.verify(result, file, x, bisect=True)
    assert found.exact
    assert found.failures == ()
    assert found.simulator.identical == 100
    with torch.no_grad():
        assert (brecq.simulate(result)(x) - result.model(x)).abs().mean() < 0.01 * result.model(x).std()


def test_the_steps_divide_three_after_learning(result: QuantResult) -> None:
    program = complete(result).graph
    steps = [
        grid_of(node)
        for node in program.graph.nodes
        if node.target is DEQUANTIZE and any(u.target is torch.ops.aten.hardswish.default for u in node.users)
    ]
    assert len(steps) == 2
    for grid in steps:
        ratio = 3 / grid.scale
        assert abs(ratio - round(ratio)) < 1e-4
        assert grid.zero_point >= round(ratio)


def test_the_product_equals_hardswish(result: QuantResult) -> None:
    plain, spelled = complete(result).graph, complete(result, products=True).graph
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        a, b = plain(x), spelled(x)
    assert (a - b).abs().mean() < 1e-3 * a.std()


@pytest.mark.parametrize(("scale", "zero_point"), [(0.05, 20), (0.05, 128), (0.2, 0), (0.001, 200), (0.9, 128)])
def test_a_grid_that_three_is_a_multiple_of_covers_the_old_one(scale: float, zero_point: int) -> None:
    range = IntRange(0, 255)
    found, zero = dividing(3.0, scale, zero_point, range)
    steps = round(3 / found)
    assert abs(3 / found - steps) < 1e-5
    assert zero - steps >= 0
    low, high = -zero_point * scale, (255 - zero_point) * scale
    assert -zero * found <= max(low, -3) + found
    assert (255 - zero) * found >= high - found
    centred, zero = dividing(3.0, scale, 0, IntRange(-128, 127), centred=True)
    assert zero == 0
    assert centred >= scale * (1 - 1e-6) or 3 / centred == pytest.approx(128)


@pytest.mark.parametrize(("range", "zero_point"), [(IntRange(0, 255), 128), (IntRange(-128, 127), 0)])
def test_a_grid_too_coarse_for_three_stays(range: IntRange, zero_point: int) -> None:
    """Its step is more than 3: with a step of 3 it would cover less, and its zero point be no code."""
    assert dividing(3.0, 7.5, zero_point, range, centred=zero_point == 0) == (7.5, zero_point)
