"""`verify` finds what differs, where it begins, and says what cannot be exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import brecq
from brecq import QuantResult
from brecq.converted.grids import Grid
from brecq.data import Dataset
from brecq.deploy.compare import CodesTally, Tally
from brecq.deploy.simulate.model import distance_from_border
from brecq.errors import ConfigError, DataError, ExportError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")

Quantized = Callable[..., QuantResult]


def data(networks: ModuleType, name: str, samples: int = 12) -> Dataset:
    return Dataset(networks.inputs(networks.build(getattr(networks, name)), samples, seed=8))


def test_a_faithful_file_equals_the_simulator(networks: ModuleType, exported: Callable[..., Any]) -> None:
    case = exported("ResNet")
    found = brecq.verify(case.result, case.file, data(networks, "ResNet"), bisect=True, batch_size=5)
    assert found.samples == 12
    assert (found.simulator.identical, found.simulator.largest, found.simulator.agreement) == (100, 0, 100)
    assert found.exact
    assert found.as_expected
    assert found.first_difference is None
    assert sum(tensor.count for tensor in found.tensors) > 10_000
    assert found.quantized.largest < 20
    assert found.completion.largest > 0  # four residual tensors were quantized in addition
    assert any("4 tensors" in note for note in found.notes)


def tampered(file: Path, path: Path, layer: str) -> Path:
    """A copy of an ONNX file with the scale of one layer's weights a tenth larger."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.name.startswith(f"{layer}.weight_scale"):
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name)
            )
    onnx.save(model, path)
    return path


def test_bisect_names_the_first_layer_that_parts(
    networks: ModuleType, exported: Callable[..., Any], tmp_path: Path
) -> None:
    case = exported("ResNet")
    file = tampered(case.file, tmp_path / "m.onnx", "layer1.1.conv1")
    found = brecq.verify(case.result, file, data(networks, "ResNet"), bisect=True)
    assert not found.as_expected
    assert found.simulator.identical < 100
    assert found.first_difference is not None
    assert found.first_difference.tensor == "layer1.1.conv1.conv2d"
    assert found.first_difference.border > 0.5  # nothing that rounding explains
    differing = {tensor.tensor for tensor in found.tensors if tensor.differing}
    assert not any(name.startswith(("conv1", "layer1.0")) for name in differing)


def test_floats_excuse_a_tipped_code(networks: ModuleType, exported: Callable[..., Any]) -> None:
    case = exported("SENet")
    found = brecq.verify(case.result, case.file, data(networks, "SENet"))
    assert not found.exact
    assert any("silu" in note for note in found.notes)
    assert found.as_expected
    assert all(tensor.largest <= 1 for tensor in found.tensors)  # each from the file's own codes before it
    assert len(found.tensors) > 5


def nameless(file: Path, path: Path) -> Path:
    """A copy of an ONNX file that does not name its result."""
    model = onnx.load(file)
    kept = [entry for entry in model.metadata_props if entry.key != "brecq.digest"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", ["SENet", "ViT"])
def test_another_results_file_fails(
    networks: ModuleType, exported: Callable[..., Any], quantized: Quantized, tmp_path: Path, name: str
) -> None:
    case = exported(name)
    other = quantized(name, 3, 8)
    found = brecq.verify(other, case.file, data(networks, name))
    assert not found.as_expected
    assert f"from another result: it names {case.result.digest()[:12]}" in found.failures[0]
    # without the name it fails by what it computes, and says where that begins
    found = brecq.verify(other, nameless(case.file, tmp_path / "m.onnx"), data(networks, name))
    assert not found.as_expected
    assert "the file parts from the simulator at" in found.failures[0]
    assert any("does not name the result" in note for note in found.notes)


def test_a_changed_layer_among_float_operators_fails(
    networks: ModuleType, exported: Callable[..., Any], tmp_path: Path
) -> None:
    case = exported("ViT")
    file = tampered(case.file, tmp_path / "m.onnx", "blocks.0.fc1")
    found = brecq.verify(case.result, file, data(networks, "ViT"))
    assert "parts from the simulator at blocks.0.gelu" in found.failures[0]


def test_a_digest_outlives_saving(exported: Callable[..., Any], quantized: Quantized, tmp_path: Path) -> None:
    result = exported("SENet").result
    result.save(tmp_path)
    assert brecq.load(tmp_path).digest() == result.digest()
    assert quantized("SENet", 3, 8).digest() != result.digest()


def test_another_networks_file_is_an_error(networks: ModuleType, exported: Callable[..., Any]) -> None:
    with pytest.raises(ExportError, match=r"shapes .*; export it again"):
        brecq.verify(exported("ResNet").result, exported("SENet").file, data(networks, "ResNet"))


def test_bad_arguments(networks: ModuleType, exported: Callable[..., Any], tmp_path: Path) -> None:
    case = exported("ResNet")
    with pytest.raises(ExportError, match="does not exist; write it with brecq export"):
        brecq.verify(case.result, tmp_path / "none.onnx", data(networks, "ResNet"))
    with pytest.raises(ConfigError, match=r"no format writes files like 'm\.bin'.*\.onnx \(onnx\)"):
        brecq.verify(case.result, tmp_path / "m.bin", data(networks, "ResNet"))
    with pytest.raises(DataError, match="no samples"):
        brecq.verify(case.result, case.file, [])
    (tmp_path / "broken.onnx").write_bytes(b"no protocol buffer")
    with pytest.raises(ExportError, match="not an ONNX file"):
        brecq.verify(case.result, tmp_path / "broken.onnx", data(networks, "ResNet"))


def test_a_result_without_ranges_cannot_be_simulated(networks: ModuleType, exported: Callable[..., Any]) -> None:
    case = exported("ResNet")
    with pytest.raises(ExportError, match="quantize again"):
        brecq.verify(dataclasses.replace(case.result, ranges=None), case.file, data(networks, "ResNet"))


def test_comparisons_are_in_steps() -> None:
    tally = Tally()
    tally.add([torch.tensor([[0.0, 1.0], [3.0, 2.0]])], [torch.tensor([[0.0, 1.5], [2.0, 2.0001]])], [0.25])
    found = tally.result()
    assert (found.identical, found.largest, found.agreement) == (50, 4, 50)
    assert found.mean == pytest.approx((0 + 2 + 4 + 0.0004) / 4, abs=1e-6)


def test_a_value_between_two_codes_explains_either() -> None:
    """Codes of 0.5 * (code - 3): 2.75 is 8.5 of them, a tie; 2.8 is 8.6, and no 8."""
    grid = Grid(0.5, 3, 0, 255, torch.uint8)
    values = torch.tensor([2.75, 2.8, 1.0])
    codes = torch.tensor([8, 9, 5], dtype=torch.uint8)
    tie, wrong = (torch.tensor(each, dtype=torch.uint8) for each in ([9, 9, 5], [8, 8, 5]))
    assert distance_from_border(codes, tie, values, grid) == 0
    assert distance_from_border(codes, wrong, values, grid) == pytest.approx(0.1, abs=1e-6)
    assert distance_from_border(codes, codes + 2, values, grid) == pytest.approx(1.4, abs=1e-6)  # 8.6 from 10


def test_codes_are_compared_as_integers() -> None:
    codes = CodesTally()
    for _ in range(2):
        codes.add("t", torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([255, 255], dtype=torch.uint8))
    assert (codes.tensors["t"].count, codes.tensors["t"].differing, codes.tensors["t"].largest) == (4, 2, 255)
