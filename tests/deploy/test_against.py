"""Every tensor of an exported file against the float network's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import brecq
from brecq.data import Dataset
from brecq.deploy.against import distances
from brecq.deploy.formats import FORMATS
from brecq.deploy.simulate import simulate

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")


@pytest.mark.parametrize("name", ["ResNet", "ConcatNet"])
def test_every_tensor_has_its_counterpart(networks: ModuleType, exported: Callable[..., Any], name: str) -> None:
    case, model = exported(name), networks.build(getattr(networks, name))
    data = Dataset(networks.inputs(model, 12, seed=8))
    found = distances(case.result, case.file, model, data, batch_size=5)
    names = [each.tensor for each in found]
    tensors = simulate(case.result).completed.quantizers()
    assert {"output", *(tensor for tensor in tensors if "pool" not in tensor)} <= set(names)
    assert [each.sqnr for each in found] == sorted(each.sqnr for each in found)
    # a tensor that were compared with another one's values would have no ratio to speak of
    assert all(5 < each.sqnr < math.inf for each in found)
    by_name = {each.tensor: each for each in found}
    measured = brecq.evaluate(simulate(case.result), data, reference=model)
    assert by_name["output"].sqnr == pytest.approx(measured.sqnr, abs=0.01)
    (x,) = data.inputs
    first = next(iter(tensors))
    assert by_name[first].signal == pytest.approx(x.double().square().sum().item())
    assert torch.isfinite(torch.tensor([each.noise for each in found])).all()


@pytest.mark.parametrize("format", ["openvino", "pt2", "qonnx"])
def test_of_a_file_that_shows_nothing_inside_the_outputs_are_compared(
    networks: ModuleType, exported: Callable[..., Any], tmp_path: Path, format: str
) -> None:
    if format != "pt2":
        pytest.importorskip(format, reason=f"needs the extra {format}")
    case, model = exported("ResNet"), networks.build(networks.ResNet)
    file = tmp_path / f"file{FORMATS[format].suffix}"
    brecq.export(case.result, file, format)
    data = Dataset(networks.inputs(model, 12, seed=8))
    (found,) = distances(case.result, file, model, data, format=format, batch_size=5)
    assert (found.tensor, found.is_output) == ("output", True)
    assert found.sqnr == pytest.approx(brecq.evaluate(case.result.model, data, reference=model).sqnr, abs=1)
    inside = distances(case.result, case.file, model, data, batch_size=5)
    assert [each.tensor for each in inside if each.is_output] == ["output"]
