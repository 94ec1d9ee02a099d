"""pt2: the same bits from packed weights, and the int8 kernels that torch.compile makes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import brecq
from brecq import QuantConfig
from brecq.deploy import pt2_runtime
from brecq.deploy.complete import complete
from brecq.errors import ExportError


@pytest.mark.parametrize(
    ("name", "weights", "activations"), [("MobileNet", 3, 4), ("UNet", 5, 8), ("ViT", 2, 32), ("ResNet", 4, 16)]
)
def test_a_file_computes_the_same_bits_as_the_completed_program(
    quantized, networks: ModuleType, tmp_path: Path, name: str, weights: int, activations: int
) -> None:
    result = quantized(name, weights, activations)
    path = brecq.export(result, tmp_path / "m.pt2", "pt2").path
    x = networks.inputs(networks.build(getattr(networks, name)), 5, seed=5)[0]
    expected = result.model if activations == 32 else complete(result).graph
    extra = {pt2_runtime.DIGEST: None}
    program = pt2_runtime.read(path, extra)
    assert extra[pt2_runtime.DIGEST] == result.digest()
    with torch.no_grad():
        assert torch.equal(program.module()(x), expected(x))
    # no float copy, and no byte per code
    stored = sum(value.nbytes for value in (program.state_dict | program.constants).values())
    assert stored < 1.15 * result.weight_bytes() + 600


def test_sixteen_bits_are_computed_operator_by_operator(quantized, networks: ModuleType, tmp_path: Path) -> None:
    result = quantized("ResNet", 4, 16)
    exported = brecq.export(result, tmp_path / "m.pt2", "pt2")
    assert exported.notes == ("weights are unpacked in every call",)
    with pytest.raises(ExportError, match="no integer kernels for 16-bit activations; run the program as it is"):
        pt2_runtime.compile_x86(exported.path)
    (x,) = networks.inputs(networks.build(networks.ResNet), 4, seed=5)
    session = pt2_runtime.load(exported.path)
    assert session.name == "PyTorch"
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(session(x.numpy())[0]), result.model(x))
    assert brecq.verify(result, exported.path, x).failures == ()


class Several(nn.Module):
    """Returns its two tensors in the containers that `arrange` puts them in."""

    def __init__(self, arrange: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.arrange = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), arrange

    def forward(self, x: Tensor) -> Any:
        middle = self.first(x).relu()
        return self.arrange(middle, self.second(middle))


@pytest.mark.parametrize(
    "arrange",
    [lambda a, b: [a, b], lambda a, b: (a, b), lambda a, b: {"a": [a], "b": ({"c": b},)}],
    ids=["list", "tuple", "nested"],
)
def test_a_loaded_result_is_exported_with_the_containers_of_its_outputs(
    tmp_path: Path, arrange: Callable[[Tensor, Tensor], Any]
) -> None:
    """torch.fx keeps lists in immutable ones of its own, which no reader of a file should have to know."""
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    brecq.quantize(Several(arrange).eval(), x, QuantConfig(8, 8, method="rtn")).save(tmp_path / "out")
    result = brecq.load(tmp_path / "out")
    path = brecq.export(result, tmp_path / "m.pt2", "pt2").path
    with torch.no_grad():
        found, expected = pt2_runtime.read(path, {}).module()(x), result.model(x)
    leaves, spec = pytree.tree_flatten(found)
    assert spec == pytree.tree_structure(expected)
    assert all(torch.equal(a, b) for a, b in zip(leaves, pytree.tree_leaves(complete(result).graph(x)), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="lowers to x86 kernels with a C++ compiler")
@pytest.mark.parametrize(("name", "weights", "integer"), [("ResNet", 4, 9)])
def test_compiling_on_x86_makes_int8_kernels(
    quantized, networks: ModuleType, tmp_path: Path, name: str, weights: int, integer: int
) -> None:
    """Asymmetric weights too: their zero points are folded, as oneDNN's kernels would ignore them."""
    from torch.backends import cpu

    if "AVX" not in cpu.get_cpu_capability():
        pytest.skip("needs an x86 CPU")
    result = quantized(name, weights, 8)
    path = brecq.export(result, tmp_path / "m.pt2", "pt2").path
    x = networks.inputs(networks.build(getattr(networks, name)), 4, seed=5)[0]
    session = pt2_runtime.load(path)
    assert session.kernels() is None
    (found,) = session(x.numpy())
    with torch.no_grad():
        expected = complete(result).graph(x)
    step = float(expected.max() - expected.min()) / 255
    assert float((torch.from_numpy(found) - expected).abs().max()) < 2.5 * step
    kernels = session.kernels()
    assert kernels is not None
    assert (kernels.integer, kernels.floating) == (integer, 0)


@pytest.mark.slow
def test_kernels_are_those_of_the_last_compilation(tmp_path: Path) -> None:
    """At batch 1 Inductor computes a linear layer of 8 inputs in float, at others on int8 kernels."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    ).eval()  # fmt: skip
    result = brecq.quantize(model, torch.randn(8, 3, 8, 8), brecq.QuantConfig(4, 8, method="rtn"))
    session = pt2_runtime.load(brecq.export(result, tmp_path / "m.pt2").path)
    for batch, integer in ((1, 1), (4, 2)):
        session(torch.randn(batch, 3, 8, 8).numpy())
        kernels = session.kernels()
        assert kernels is not None
        assert (kernels.integer, kernels.floating) == (integer, 2 - integer)


def test_asymmetric_8_bit_weights_are_not_lowered(quantized, networks: ModuleType, tmp_path: Path) -> None:
    result = quantized("ResNet", 8, 8, weight_scheme="asymmetric")
    path = brecq.export(result, tmp_path / "m.pt2", "pt2").path
    x = networks.inputs(networks.build(networks.ResNet), 4, seed=5)[0]
    with torch.no_grad():
        assert torch.equal(pt2_runtime.read(path).module()(x), complete(result).graph(x))
    with pytest.raises(ExportError, match=r"asymmetric 8-bit weights .*--weight-scheme"):
        pt2_runtime.compile_x86(path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_text("nothing")
    with pytest.raises(ExportError, match=r"is not a torch\.export program"):
        pt2_runtime.compile_x86(tmp_path / "m.pt2")
