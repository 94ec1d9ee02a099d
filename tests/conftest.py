"""Fixtures that every test may use."""

from __future__ import annotations

import copy
import importlib.util
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn
from torch.fx import GraphModule

from brecq.capture.export import capture
from brecq.data.dataset import Dataset

Captured = Callable[[str], GraphModule]
SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# Nothing is said about a test by how busy the machine is. The same code passes or fails every time; other examples
# than these are tried with BRECQ_EXPLORE=1.
settings.register_profile(
    "brecq",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("BRECQ_EXPLORE"),
)
settings.load_profile("brecq")

# Fixtures of a module run before the per-test fixture below: they too are on one thread.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def tables() -> None:
    """What PyTorch would make anew for every export is made once in a process: see `tests/torch_tables.py`."""
    _neighbour("torch_tables").keep()


@pytest.fixture(scope="session")
def browser() -> str:
    """The program of Chromium; tests that need it are skipped where it is absent."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium")
    return found


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def deterministic() -> None:
    """Every test starts from the same random state, on one thread: tensors are tiny, the suite runs in several
    processes, and threads that wait for each other cost far more than they gain."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The module `tests/networks.py`: small networks to test with (tests are no package that could be imported)."""
    return _neighbour("networks")


@pytest.fixture(scope="session")
def detectors() -> ModuleType:
    """The module `tests/detectors.py`: small detectors of torchvision's classes."""
    pytest.importorskip("torchvision")
    return _neighbour("detectors")


def _neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"brecq_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def captures(networks: ModuleType) -> Captured:
    """The captured network of a name in `networks`, the same one every time: copy it before changing it."""

    @cache
    def get(name: str) -> GraphModule:
        model = networks.build(getattr(networks, name))
        return capture(model, networks.inputs(model))

    return get


@pytest.fixture
def captured(captures: Captured) -> Captured:
    """`captured("ResNet")`: a copy of the captured network of that name in `networks`."""
    return lambda name: copy.deepcopy(captures(name))


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """As in a run, where learning alone asks for gradients."""
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Trained:
    """A trained network, inputs to calibrate with, and labelled ones to test on."""

    model: nn.Module
    calibration: Tensor
    test: Dataset


@pytest.fixture(scope="session")
def trained(networks: ModuleType) -> Trained:
    """A network of inverted residuals that tells gratings apart, trained once in a session."""
    images, labels = networks.gratings(400, seed=7)
    return Trained(networks.train(networks.MobileNet), networks.gratings(256, seed=3)[0], Dataset((images,), labels))
