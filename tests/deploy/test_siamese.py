"""An encoder that is called twice in one forward: one weight, its batch norms folded, integer kernels throughout."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe
from brecq.converted.layers import weighted_layers


class Siamese(nn.Module):
    """What changed between two pictures."""

    def __init__(self, networks: ModuleType) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*networks.conv_bn(3, 8), nn.ReLU(), networks.BasicBlock(8, 8, 2))
        self.head = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(a), self.encoder(b)], 1))


def test_a_siamese_network_is_integers_from_end_to_end(networks: ModuleType, tmp_path: Path) -> None:
    model = networks.build(lambda: Siamese(networks))
    torch.manual_seed(0)
    data = [(torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8))]
    recipe = Recipe.preset("fast").replace(steps=2, batch_size=4)
    result = brecq.quantize(model, data, QuantConfig(weights=8, activations=8, recipe=recipe))
    assert "batch_norm" not in {entry.kind for entry in result.report.scope}
    counted = [entry.layer for entry in result.report.scope if entry.parameters]
    once = ["encoder.0", "encoder.3.conv1", "encoder.3.conv2", "encoder.3.downsample.0", "head"]
    assert counted == once
    assert len({str(layer.weight) for layer in weighted_layers(result.converted)}) == len(once)
    with torch.no_grad():
        expected, found = model(*data[0]), result.model(*data[0])
    assert float((found - expected).square().mean() / expected.square().mean()) < 1e-3

    result.save(tmp_path / "out")
    loaded = brecq.load(tmp_path / "out")
    assert torch.equal(loaded.model(*data[0]), found)
    exported = brecq.export(loaded, tmp_path / "model.onnx")
    verified = brecq.verify(loaded, exported.path, data)
    assert verified.exact
    assert verified.failures == ()
    assert (verified.kernels.integer, verified.kernels.floats) == (9, ())
