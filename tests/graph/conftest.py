"""Captured networks: exported once a session, since that takes seconds each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import pytest
import torch
from torch.fx import GraphModule

from brecq.graph.capture import capture

Captured = Callable[[str], GraphModule]


@pytest.fixture(scope="session")
def _captures(networks: ModuleType) -> Captured:
    @lru_cache(maxsize=None)
    def get(name: str) -> GraphModule:
        model = networks.build(getattr(networks, name))
        return capture(model, networks.inputs(model))

    return get


@pytest.fixture
def captured(_captures: Captured) -> Captured:
    """`captured("ResNet")`: a copy of the captured network of that name in `networks`."""
    return lambda name: copy.deepcopy(_captures(name))


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield
