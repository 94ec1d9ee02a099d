"""Captured networks: exported once a session, since that takes seconds each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType

import pytest
import torch
from torch.fx import GraphModule

from brecq.graph.capture import capture

Captured = Callable[[str], GraphModule]


@pytest.fixture(scope="session")
def _captures(networks: ModuleType) -> Captured:
    @cache
    def get(name: str) -> GraphModule:
        model = networks.build(getattr(networks, name))
        return capture(model, networks.inputs(model))

    return get


@pytest.fixture
def captured(_captures: Captured) -> Captured:
    """`captured("ResNet")`: a copy of the captured network of that name in `networks`."""
    return lambda name: copy.deepcopy(_captures(name))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors are tiny: on a busy machine a second thread costs far more than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
