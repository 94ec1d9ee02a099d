"""Captured networks to prepare and cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.fx import GraphModule

Captured = Callable[[str], GraphModule]


@pytest.fixture
def captured(captures: Captured) -> Captured:
    """`captured("ResNet")`: a copy of the captured network of that name in `networks`."""
    return lambda name: copy.deepcopy(captures(name))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
