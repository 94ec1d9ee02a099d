"""Microcontrollers: C that computes, compiled with gcc, what the simulator in fixed point computes, code for code.

The environment variable CMSIS_NN names a checkout of CMSIS-NN to compile with. Without it the C is compiled with
`reference/reference.c` of the package, which computes what the documentation of CMSIS-NN says.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import brecq
from brecq import QuantResult
from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.deploy.cmsis import runtime
from brecq.deploy.cmsis.arena import ALIGNMENT, Alive, place, size
from brecq.deploy.simulate import simulate
from brecq.deploy.simulate.arithmetic import multiplier, rescale
from brecq.errors import ConfigError, ExportError

Quantized = Callable[..., QuantResult]

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to compile exported C")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Headers and a library of CMSIS-NN, or of the reference."""
    folder = tmp_path_factory.mktemp("kernels")
    headers, sources, _ = runtime.kernels()
    compiled = ["gcc", "-O1", "-w", "-c", f"-I{headers}", *map(str, sources)]
    subprocess.run(compiled, cwd=folder, check=True)
    objects = [str(file) for file in folder.glob("*.o")]
    subprocess.run(["ar", "rcs", "libkernels.a", *objects], cwd=folder, check=True)
    return headers, folder / "libkernels.a"


def run(folder: Path, kernels: tuple[Path, Path], inputs: tuple[Tensor, ...]) -> np.ndarray:
    """The numbers that the compiled `main.c` writes, with every warning on and memory checked."""
    headers, library = kernels
    checks = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", f"-isystem{headers}"]
    files = [str(file) for file in folder.glob("*.c")]
    program = folder / "run"
    subprocess.run(["gcc", *checks, *files, str(library), "-lm", "-o", str(program)], check=True)
    samples = range(len(inputs[0]))
    given = b"".join(_memory(value[i : i + 1]).tobytes() for i in samples for value in inputs)
    done = subprocess.run([str(program)], input=given, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


def _memory(value: Tensor) -> np.ndarray:
    return np.ascontiguousarray((value.permute(0, 2, 3, 1) if value.dim() == 4 else value).numpy())


NETWORKS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("ResNet", 4, 8, {"weight_scheme": "symmetric"}),
    ("MobileNet", 2, 4, {}),
    ("CifarResNet", 3, 8, {"first_last": None}),
    ("ConcatNet", 5, 4, {"placement": "input"}),  # codes of one grid are put on another
    ("SENet", 6, 8, {}),  # a swish, looked up, and a product with one factor a channel
    ("UNet", 8, 8, {}),
    ("FPN", 7, 6, {"activation_scheme": "symmetric"}),
    ("Spotter", 4, 8, {}),  # the average of a sequence
]


@needs_gcc
@pytest.mark.parametrize(("name", "weights", "activations", "config"), NETWORKS)
def test_compiled_networks_compute_the_codes_of_the_simulator(
    networks: ModuleType,
    quantized: Quantized,
    kernels: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    weights: int,
    activations: int,
    config: dict[str, Any],
) -> None:
    result = quantized(name, weights, activations, **config)
    exported = brecq.export(result, tmp_path / "c", "cmsis-nn", name="tiny")
    assert {file.name for file in exported.files} == {"tiny.h", "tiny.c", "main.c"}
    inputs = networks.inputs(networks.build(getattr(networks, name)), 3, seed=5)
    expected = torch.utils._pytree.tree_leaves(simulate(result, "FixedPoint")(*inputs))
    ours = np.concatenate([_memory(value[i : i + 1]).reshape(-1) for i in range(3) for value in expected])
    np.testing.assert_array_equal(run(tmp_path / "c", kernels, inputs), ours)


@needs_gcc
def test_verify_compiles_and_compares(networks: ModuleType, quantized: Quantized, tmp_path: Path) -> None:
    """FPN has several outputs. Another result's C is found."""
    result = quantized("FPN", 7, 6, activation_scheme="symmetric")
    brecq.export(result, tmp_path / "c", "cmsis-nn")
    inputs = networks.inputs(networks.build(networks.FPN), 3, seed=5)
    found = brecq.verify(result, tmp_path / "c", [inputs], format="cmsis-nn")
    assert found.exact
    assert found.as_expected, found.failures
    assert found.runtime.startswith("C compiled here, with ")
    brecq.export(quantized("FPN", 4, 6), tmp_path / "c", "cmsis-nn")
    other = brecq.verify(result, tmp_path / "c", [inputs], format="cmsis-nn")
    assert "another result" in other.failures[0]
    with pytest.raises(ConfigError, match="says nothing of the time"):
        brecq.benchmark(result, tmp_path / "c", format="cmsis-nn")


def test_the_report_tells_ram_and_flash(quantized: Quantized, tmp_path: Path) -> None:
    notes = {}
    for bits in (4, 8):
        result = quantized("MobileNet", bits, 8, weight_scheme="symmetric", first_last=None)
        notes[bits] = brecq.export(result, tmp_path / "c", "cmsis-nn").notes
    header = (tmp_path / "c" / "network.h").read_text()
    ram = re.search(r"arena of (\d+) bytes", notes[8][0])
    assert ram is not None
    assert f"#define NETWORK_ARENA_SIZE {ram[1]}\n" in header
    flash = [int(re.findall(r"flash: (\d+)", notes[bits][1])[0]) for bits in (4, 8)]
    stored = [each for each in collect_tensors(result.converted).values() if isinstance(each, PackedWeight)]
    weights = sum(each.codes().numel() for each in stored)
    assert flash[1] - flash[0] == weights / 2
    # Two tensors of 16x16x32 at most are alive together, the arena holds them and what the kernels work in.
    assert int(ram[1]) < 3 * 16 * 16 * 32


def test_the_same_result_is_the_same_c(quantized: Quantized, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        brecq.export(quantized("ResNet"), tmp_path / folder, "cmsis-nn")
    for name in ("network.h", "network.c", "main.c"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    assert quantized("ResNet").digest() in (tmp_path / "a" / "network.h").read_text()


def test_what_integers_cannot_compute_is_refused_in_a_line(quantized: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(
        ExportError, match=r"CMSIS-NN computes on integers alone.*and \d+ more; quantize with --target"
    ):
        brecq.export(quantized("ViT", 4, 8), path, "cmsis-nn")
    with pytest.raises(ExportError, match=r"computes on integers alone.* more; export to tflite"):
        brecq.export(quantized("ViT", 4, 8, target="cmsis-nn"), path, "cmsis-nn")
    with pytest.raises(ExportError, match="leaves them in float; quantize with --activation-bits 8"):
        brecq.export(quantized("ViT", 4, 32), path, "cmsis-nn")
    with pytest.raises(ExportError, match=r"CMSIS-NN: conv2d in conv1 has asymmetric 8-bit weights"):
        brecq.export(quantized("ResNet", 8, 8, weight_scheme="asymmetric"), path, "cmsis-nn")
    with pytest.raises(ConfigError, match="name is '2nd net'; choose a C identifier"):
        brecq.export(quantized("ResNet"), path, "cmsis-nn", name="2nd net")
    assert not path.exists()
    path.mkdir()
    (path / "main.c").write_text("int main(void) { return 0; }")
    with pytest.raises(ExportError, match=r"main\.c is not brecq's and is not replaced"):
        brecq.export(quantized("ResNet"), path, "cmsis-nn")


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_buffers_that_live_together_do_not_overlap(rows: list[tuple[int, int, int]]) -> None:
    buffers = {f"b{n}": Alive(size, min(a, b), max(a, b)) for n, (size, a, b) in enumerate(rows)}
    places = place(buffers)
    assert all(offset % ALIGNMENT == 0 for offset in places.values())
    for first, a in buffers.items():
        assert places[first] + a.size <= size(buffers, places)
        for second, b in buffers.items():
            if first < second and a.first <= b.last and b.first <= a.last:
                assert places[first] + a.size <= places[second] or places[second] + b.size <= places[first]


@given(st.floats(1e-9, 0.99), st.integers(-(2**31), 2**31 - 1))
def test_multipliers_of_31_bits_stand_for_factors(factor: float, value: int) -> None:
    whole, shift = multiplier(factor)
    assert 2**30 <= whole < 2**31
    assert abs(whole * 2.0 ** (shift - 31) / factor - 1) < 2**-30
    for halves in ("away", "up"):
        found = int(rescale(torch.tensor(value), whole, shift, halves))
        assert abs(found - value * factor) <= 0.76 + abs(value * factor) * 2**-30
