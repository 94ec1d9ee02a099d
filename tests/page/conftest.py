"""A network whose sensitivities were measured, for the pages of searches."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import brecq


@pytest.fixture(scope="session")
def sensitivities(networks: ModuleType) -> brecq.SensitivityTable:
    pytest.importorskip("scipy")
    torch.manual_seed(0)
    model = networks.build(networks.MobileNet)
    data = torch.randn(16, *networks.inputs(model)[0].shape[1:])
    return brecq.measure_sensitivity(model, data, brecq.QuantConfig(activations=8), bits=(2, 4, 8))
