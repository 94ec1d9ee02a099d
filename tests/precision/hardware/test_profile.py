"""Layers as ONNX models compute what the layer computes; a small network is profiled."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import ConfigError
from brecq.precision.hardware.profile import measure_latency, network_layers
from brecq.precision.layers import Layer

onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'brecq[profile]'")
numpy_helper = pytest.importorskip("onnx.numpy_helper")


def reference(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if layer.kind == "linear":
        return F.linear(x, weight.T if len(layer.input_shape) > 1 else weight, bias)
    if layer.kind.startswith("conv_transpose"):
        transposed = F.conv_transpose1d if len(layer.kernel) == 1 else F.conv_transpose2d
        whole = transposed(x, weight, bias, layer.stride, groups=layer.groups, dilation=layer.dilation)
        for dim, size in enumerate(layer.output_shape[1:], 2):  # ONNX cuts both ends to the size it was given
            whole = whole.narrow(dim, (whole.shape[dim] - size) // 2, size)
        return whole
    rank = len(layer.kernel)
    total = [
        max(0, (out - 1) * s + d * (k - 1) + 1 - size)
        for size, out, k, s, d in zip(
            layer.input_shape[1:], layer.output_shape[1:], layer.kernel, layer.stride, layer.dilation, strict=True
        )
    ]
    padded = F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
    return (F.conv1d if rank == 1 else F.conv2d)(padded, weight, bias, layer.stride, 0, layer.dilation, layer.groups)


@pytest.mark.parametrize("name", ["ViT", "UNet", "Signal"])
@pytest.mark.parametrize("quantized", [False, True])
def test_models_of_layers(networks: ModuleType, name: str, quantized: bool) -> None:
    from brecq.precision.hardware.onnx_layers import layer_model

    model = networks.build(getattr(networks, name))
    for layer in network_layers(model, networks.inputs(model)):
        built = layer_model(layer, quantized=quantized)
        session = onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
        constants = {c.name: torch.from_numpy(numpy_helper.to_array(c).copy()) for c in built.graph.initializer}
        shape = (1, *layer.input_shape)
        generator = np.random.default_rng(0)
        if not quantized:
            x = generator.standard_normal(shape, dtype=np.float32)
            (y,) = session.run(None, {"x": x})
            expected = reference(layer, torch.from_numpy(x), constants["w"], constants["b"])
            torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-3, atol=1e-3)
            continue
        x = generator.integers(0, 256, shape, dtype=np.uint8)
        (y,) = session.run(None, {"x": x})
        step = constants["s"].item()
        real = reference(
            layer, (torch.from_numpy(x).float() - 128) * step, constants["wq"].float() * step,
            constants["bq"].float() * step * step,
        )  # fmt: skip
        expected = (real / step).round().add(128).clamp(0, 255)
        assert (torch.from_numpy(y).float() - expected).abs().max() <= 1
        assert y.shape == (1, *layer.output_shape)


def test_every_shape_is_measured_once(networks: ModuleType) -> None:
    model = networks.build(networks.ResNet)
    table = measure_latency(model, networks.inputs(model), repeats=3, warmup=1)
    layers = network_layers(model, networks.inputs(model))
    assert len({entry.signature for entry in table.entries}) < len(layers) == 9
    for layer in layers:
        assert table.cost(layer, 4, 8) == table.cost(layer, 8, 8) > 0
        assert table.cost(layer, 4, 32) == table.cost(layer, 32, 32) > 0
    assert table.metadata["repeats"] == 3


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}, {"threads": 0}])
def test_settings_out_of_range(networks: ModuleType, options: dict[str, int]) -> None:
    model = networks.build(networks.ResNet)
    with pytest.raises(ConfigError, match=next(iter(options))):
        measure_latency(model, networks.inputs(model), **options)
