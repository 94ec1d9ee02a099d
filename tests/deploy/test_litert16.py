"""LiteRT with 16-bit activations: int16 codes, int8 and int4 weights, code for code what its simulator computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import brecq
from brecq import LayerRule, QuantConfig, QuantResult
from brecq.converted.grids import Grid
from brecq.deploy.simulate import kernels, simulate
from brecq.deploy.simulate.arithmetic import multiplier
from brecq.deploy.simulate.wide import rescale_wide
from brecq.errors import ConfigError, ExportError
from brecq.graph.ops import aten

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'brecq[litert]'")

from brecq.deploy.lite.lower import lower
from brecq.deploy.litert import runtime

Quantized = Callable[..., QuantResult]

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")


class Everything(nn.Module):
    """What computes on 16-bit codes besides plain convolutions: groups, dilation, strides, joins, pooling, gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=2, dilation=2, groups=16)
        self.point = nn.Conv2d(32, 16, 1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.hidden, self.head = nn.Linear(40 * 4, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = nn.functional.relu6(self.grouped(x) + x)
        y = self.point(self.depthwise(y)) * self.gate(x)  # a product of codes
        y = nn.functional.avg_pool2d(y + self.gate(nn.functional.adaptive_avg_pool2d(x, 1)), 2)  # broadcasts
        y = torch.cat([y, torch.relu(self.up(nn.functional.max_pool2d(y, 2))), nn.functional.pad(y, (0, 0, 0, 0))], 1)
        y = nn.functional.avg_pool2d(nn.functional.interpolate(y, scale_factor=2.0), 8)
        return self.head(torch.relu(self.hidden(y.flatten(1))))


class Long(nn.Module):
    """Sums of so many products that 32 bits need not hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.head = nn.Conv2d(2600, 3, 1), nn.Linear(2600, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.point(x), self.head(x.mean((2, 3)))


def made(network: nn.Module, shape: tuple[int, ...], weights: int = 8, **config: Any) -> tuple[QuantResult, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(24, *shape)
    return brecq.quantize(
        network.eval(), x, QuantConfig(weights, 16, method="rtn", target="litert", **config)
    ), torch.randn(5, *shape)


def biases(result: QuantResult) -> dict[str, str]:
    """The types of weights and bias of every layer, by its name."""
    program = lower(simulate(result, "LiteRT").completed, 1, runtime.LITERT)
    layers = [
        each.inputs for each in program.operators if each.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    return {weight.name.removesuffix(".weight"): f"{weight.dtype} {bias.dtype}" for _, weight, bias in layers}


@pytest.mark.parametrize("name", ["default", "reference"])
@pytest.mark.parametrize("weights", [4, 8])
def test_every_kernel_computes_the_codes_of_its_simulator(tmp_path: Path, weights: int, name: str) -> None:
    torch.manual_seed(0)
    result, x = made(Everything(), (3, 16, 16), weights)
    _compare(result, x, tmp_path, name)
    narrow = "int4" if weights == 4 else "int8"
    types = biases(result)
    assert types["grouped"] == types["point"] == f"{narrow} int32"
    assert types["depthwise"] == "int8 int64"  # its kernel reads no packed weights, and no other bias


@pytest.mark.parametrize("name", ["default", "reference"])
def test_sums_that_32_bits_need_not_hold_have_64(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    result, x = made(Long(), (2600, 2, 2), first_last=None)
    assert set(biases(result).values()) == {"int8 int64"}
    _compare(result, 50 * x, tmp_path, name)  # far beyond what it was calibrated on


@pytest.mark.parametrize(
    ("name", "weights"),
    [("ResNet", 4), ("MobileNet", 8), ("UNet", 4), ("FPN", 3), ("ConcatNet", 5), ("Spotter", 8)],
)
def test_networks_compute_the_codes_of_the_simulator(
    networks: ModuleType, quantized: Quantized, tmp_path: Path, name: str, weights: int
) -> None:
    result = quantized(name, weights, 16, target="litert")
    (x,) = networks.inputs(networks.build(getattr(networks, name)), 3, seed=5)
    _compare(result, x, tmp_path, "default")
    found = brecq.verify(result, tmp_path / "m.tflite", x)
    assert found.failures == ()
    assert found.exact
    assert found.quantized.mean < 0.05  # of 255 steps: of 65 536, 13
    assert found.kernels is not None
    assert (found.kernels.integer > 0, found.kernels.floating) == (True, 0)


def _compare(result: QuantResult, x: Tensor, folder: Path, name: str) -> None:
    file = brecq.export(result, folder / "m.tflite").path
    simulator = simulate(result, {"default": "LiteRT", "reference": "FixedPoint"}[name])
    session = runtime.Session(file, kernels=name)
    for number in range(len(x)):
        part = x[number : number + 1]
        _, codes = session.trace(part.numpy())
        ours = simulator.codes(part)
        assert codes.keys() == ours.keys()
        for key, value in ours.items():
            assert value.dtype == torch.int16
            np.testing.assert_array_equal(codes[key].reshape(-1), value.reshape(-1).numpy(), err_msg=key)


def test_numbers_left_over_may_be_a_step_apart(tmp_path: Path) -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b.weight.data *= 0.01

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    for size, exact in ((5, False), (4, True)):
        result, x = made(Added(), (3, size, size))
        found = brecq.verify(result, brecq.export(result, tmp_path / f"{size}.tflite").path, x, bisect=True)
        assert found.failures == ()
        assert found.exact == exact
        assert any("two kernels of add, quantize_per_tensor" in note for note in found.notes) != exact


def test_what_has_no_kernel_is_float_and_said(networks: ModuleType, quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("SENet", 8, 16, target="litert")
    exported = brecq.export(result, tmp_path / "m.tflite")
    assert "activations have 16 bits" in exported.notes
    assert any(note.startswith("computed in float") and "LOGISTIC" in note for note in exported.notes)
    (x,) = networks.inputs(networks.build(networks.SENet), 4, seed=5)
    found = brecq.verify(result, exported.path, x, bisect=True)
    assert found.failures == ()
    assert not found.exact
    checked = brecq.check(networks.build(networks.SENet), (x,), QuantConfig(8, 16, target="litert"))
    assert {"sigmoid"} <= {each.op for each in checked.floats}
    assert {each.computes for each in checked.layers} == {"16x8"}
    assert checked.refused == ""


def test_means_of_more_numbers_than_32_bits_hold_are_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 1, 1), nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).mean((2, 3)))

    found = brecq.check(Mean().eval(), (torch.randn(2, 1, 256, 256),), QuantConfig(8, 16, target="litert"))
    assert "the sum of 65536 numbers of 16 bits may leave 32" in found.refused
    assert not brecq.check(Mean().eval(), (torch.randn(2, 1, 256, 255),), QuantConfig(8, 16, target="litert")).refused


def test_one_layer_cannot_have_16_bits_nor_8_among_them(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    (x,) = networks.inputs(model, 4)
    rule = LayerRule("layer1.0.conv2", activations=16)
    with pytest.raises(ConfigError, match=r"litert gives a whole network 16-bit activations \(activations=16\)"):
        brecq.quantize(model, x, QuantConfig(8, 8, method="rtn", target="litert", rules=(rule,)))
    rule = LayerRule("layer1.0.conv2", activations=8)
    with pytest.raises(ConfigError, match=r"litert computes conv2d at 4/16 bits .*, not 4/8 bits"):
        brecq.quantize(model, x, QuantConfig(4, 16, method="rtn", target="litert", rules=(rule,)))


def test_results_without_the_target_are_refused(quantized: Quantized, tmp_path: Path) -> None:
    for config in ({}, {"target": "qualcomm"}):
        with pytest.raises(
            ExportError, match="zero points 0, and no others beside them; quantize with --target litert"
        ):
            brecq.export(quantized("ResNet", 4, 16, **config), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@settings(max_examples=60)
@given(st.integers(0, 2**31))
def test_sums_of_16_by_8_bits_are_exact(seed: int) -> None:
    """Of extreme codes and weights, and many of them: float32 would lose the last bits."""
    random = np.random.default_rng(seed)
    count = int(random.choice([9, 700, 5000]))
    codes = random.choice([-32768, 32767, *random.integers(-32768, 32768, 5)], (2, count))
    weight = random.choice([-127, 127, *random.integers(-127, 128, 3)], (3, count))
    bias = random.integers(-(2**30), 2**30, 3)
    grid = Grid(1e-4, 0, -32768, 32767, torch.int16)
    found = kernels.accumulate(
        aten.linear.default, torch.from_numpy(codes).to(torch.int16), grid, torch.from_numpy(weight).float(),
        torch.from_numpy(bias).to(torch.int32),
    )  # fmt: skip
    exact = codes.astype(object) @ weight.T.astype(object) + bias
    assert [[int(each) for each in row] for row in found] == exact.tolist()
    fits = kernels.fits_int32(torch.from_numpy(weight), torch.from_numpy(bias), 0)
    largest = max(int(np.abs(row).sum()) for row in weight) * 32768 + int(np.abs(bias).max())
    assert fits == (largest < 2**31)


@given(st.integers(-(2**46), 2**46), st.floats(1e-9, 100))
def test_sums_of_64_bits_are_multiplied_by_15(x: int, factor: float) -> None:
    whole, shift = multiplier(factor)
    found = int(rescale_wide(torch.tensor(x), torch.tensor(whole), torch.tensor(shift)))
    reduced = min((whole + 2**15) // 2**16, 2**15 - 1)
    assert found == (x * reduced * 2 + 2 ** (15 - shift)) // 2 ** (16 - shift)
    assert abs(found - x * factor) <= 0.5 + abs(x * factor) * 2.0**-14
