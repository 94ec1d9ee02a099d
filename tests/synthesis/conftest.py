"""Fixtures of the tests of distillation."""

from __future__ import annotations

from types import ModuleType

import pytest
from torch import nn

from brecq.data.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def resnet(networks: ModuleType) -> nn.Module:
    """A residual network with batch norm statistics that are far from the initial ones."""
    return networks.build(networks.ResNet)


@pytest.fixture
def preprocessing() -> Preprocessing:
    return Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), size=(16, 16), resize=16)
