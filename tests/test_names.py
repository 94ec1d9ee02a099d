"""Whatever a result calls its parts, what was saved is read again; what could not be is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import brecq
from brecq import CaptureError, CheckpointError, QuantConfig
from brecq.checkpoint import program
from brecq.names import is_variable, unwritable

CONFIG = QuantConfig(4, 8, method="rtn")
WRITABLE = [
    "conv,1",
    "a=b",
    "<i>&;",
    "a'",
    "*",
    "%s",
    "{x}",
    "🙂",
    "👨\u200d👩",
    "a b",
    "1x1",
    "слой",
    "Conv",
    "conv",
    "a#b",
]
UNWRITABLE = [
    "class",
    "global",
    'q"q',
    "C:\\x",
    "a\nb",
    "a\0b",
    "\ud800",
    "\ufb01",
    "e\u0301",
    "\u2028",
    'x")+(1/0)+("',
]


class Named(nn.Module):
    def __init__(self, layers: list[str], keys: list[str]) -> None:
        super().__init__()
        self.keys = keys
        for name in layers:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, größe: Tensor) -> Any:
        for layer in self._modules.values():
            größe = layer(größe).relu()
        return {"relu": größe, **{key: größe * (number + 2) for number, key in enumerate(self.keys)}}


def round_trip(model: nn.Module, folder: Path) -> None:
    x = torch.randn(64, 4)
    result = brecq.quantize(model, x, CONFIG)
    loaded = brecq.load(result.save(folder))
    found, expected = loaded.model(x), result.model(x)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert loaded.report.scope == result.report.scope


def test_names_of_layers_inputs_and_outputs_are_data(tmp_path: Path) -> None:
    round_trip(Named([*WRITABLE, "n" * 400], ["", *WRITABLE, *UNWRITABLE, "k" * 400]), tmp_path / "r")


def _allowed(name: str) -> bool:
    return "." not in name and not hasattr(nn.Linear(1, 1), name) and not hasattr(torch.fx.GraphModule, name)


NAMES = st.lists(st.text(min_size=1, max_size=8).filter(_allowed), min_size=1, max_size=4, unique=True)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, NAMES)
def test_whatever_is_saved_is_read(tmp_path: Path, layers: list[str], keys: list[str]) -> None:
    model = Named(["first", *layers], keys) if "first" not in layers else Named(layers, keys)
    if any(map(unwritable, layers)):
        with pytest.raises(CaptureError, match="has a part called"):
            brecq.quantize(model, torch.randn(8, 4), CONFIG)
    else:
        round_trip(model, tmp_path / "r")


@pytest.mark.parametrize("name", UNWRITABLE)
def test_names_that_no_program_can_hold_are_refused_first(name: str) -> None:
    with pytest.raises(CaptureError) as refused:
        brecq.quantize(Named(["first", name], []), torch.randn(8, 4), CONFIG)
    assert repr(name) in str(refused.value)
    assert "rename it" in str(refused.value)


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.layer(inputs["a b"])


def test_names_of_inputs_that_no_program_can_hold_are_refused_first() -> None:
    with pytest.raises(CaptureError, match="the input 'a b' has a name that PyTorch cannot write"):
        brecq.quantize(Keyword(), {"a b": torch.randn(8, 4)}, CONFIG)


@pytest.mark.parametrize("name", [*UNWRITABLE, "", "a..b"])
def test_no_name_of_a_file_becomes_code(name: str) -> None:
    with pytest.raises(CheckpointError, match="is no name"):
        program._put(nn.Module(), f"{name}.weight", torch.zeros(1))
    with pytest.raises(CheckpointError, match="is no name"):
        program._name(name)


@given(st.text(min_size=1, max_size=12))
def test_a_writable_name_is_one_string_in_the_text_of_a_program(name: str) -> None:
    """What torch.fx writes for it evaluates to the attribute of that name, and to nothing else."""
    if unwritable(name) is None:
        parts = name.split(".")
        root: Any = "found"
        for part in reversed(parts):
            root = type("Owner", (), {"__getattr__": _only(part, root)})()
        assert eval(torch.fx.graph._format_target("root", name), {"root": root}) == "found"
    if is_variable(name):
        assert eval(name, {"__builtins__": {}, name: 1}) == 1


def _only(part: str, value: Any) -> Any:
    def read(self: Any, name: str) -> Any:
        assert name == part
        return value

    return read


def test_a_submodule_of_a_long_name_has_a_folder(tmp_path: Path) -> None:
    model = nn.Sequential()
    names = ["a" * 300, "a" * 299 + "b"]
    for name in names:
        model.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    result = brecq.quantize(model, torch.randn(64, 4), CONFIG, submodules=names)
    assert list(brecq.load(result.save(tmp_path / "r")).parts) == names


@pytest.mark.parametrize(
    ("suffix", "keys"),
    [("onnx", ["linear", "mul_1"]), ("onnx", ["größe"]), ("onnx", UNWRITABLE), ("pt2", UNWRITABLE)],
)
def test_files_of_networks_with_such_names_are_opened_again(tmp_path: Path, suffix: str, keys: list[str]) -> None:
    x = torch.randn(64, 4)
    result = brecq.quantize(Named(WRITABLE[:6], keys), x, CONFIG)
    path = brecq.export(result, tmp_path / f"m.{suffix}").path
    assert brecq.verify(result, path, x).failures == ()


class Empty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x), {}, [], ()


def test_empty_containers_are_returned(tmp_path: Path) -> None:
    x = torch.randn(64, 4)
    result = brecq.quantize(Empty(), x, CONFIG)
    found = brecq.load(result.save(tmp_path / "r")).model(x)
    assert torch.equal(found[0], result.model(x)[0])
    assert found[1:] == ({}, [], ())
