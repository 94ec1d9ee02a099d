"""The accelerator's equations against layers computed by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from brecq.errors import HardwareError
from brecq.precision.hardware.accelerator import PRESETS, Accelerator
from brecq.precision.layers import Layer

ARRAY = Accelerator("test", 16, 32, 100.0, "fusible", 64, 32, 1.6)  # 16 bytes a cycle
SERIAL = dataclasses.replace(ARRAY, multiplier="serial")
CONV = Layer(
    "conv", "conv2d", "b", (64, 32, 3, 3), (32, 14, 14), (64, 14, 14), (1, 1), (1, 1), 1, 64 * 196 * 288, "w", "a"
)
DEPTHWISE = Layer(
    "dw", "conv2d", "b", (96, 1, 3, 3), (96, 28, 28), (96, 28, 28), (1, 1), (1, 1), 96, 96 * 784 * 9, "w", "a"
)
LINEAR = Layer("fc", "linear", "b", (1000, 512), (512,), (1000,), (), (), 1, 512_000, "w", "a")


@pytest.mark.parametrize(
    ("layer", "bits", "cycles"),
    [
        # K = 288 products: 18 tiles of 16 rows; M = 64: 2 of 32 columns; 196 positions a tile; 16 + 32 - 2 to fill
        (CONV, (8, 8), 18 * 2 * 196 + 46),
        # four products a unit and cycle: ⌈288 / 64⌉ = 5
        (CONV, (4, 4), 5 * 2 * 196 + 46),
        (CONV, (2, 8), 5 * 2 * 196 + 46),
        # sixteen: ⌈288 / 256⌉ = 2
        (CONV, (2, 2), 2 * 2 * 196 + 46),
        # three bits take the room of four
        (CONV, (3, 3), 5 * 2 * 196 + 46),
        # 96 groups of one channel with nine products: a tile each, whatever the bits
        (DEPTHWISE, (8, 8), 96 * 784 + 46),
        (DEPTHWISE, (2, 2), 96 * 784 + 46),
        # one position: loading 16 rows of weights takes longer than streaming it; 32 · 32 tiles
        (LINEAR, (8, 8), 32 * 32 * 16 + 46),
    ],
)
def test_compute(layer: Layer, bits: tuple[int, int], cycles: int) -> None:
    assert ARRAY.compute_cycles(layer, *bits) == cycles


def test_bit_serial_weights() -> None:
    # 8 / 3 products a unit and cycle: ⌈288 · 3 / (16 · 8)⌉ = 7; inputs of fewer bits change nothing
    assert SERIAL.compute_cycles(CONV, 3, 8) == SERIAL.compute_cycles(CONV, 3, 4) == 7 * 2 * 196 + 46
    assert SERIAL.compute_cycles(CONV, 8, 8) == ARRAY.compute_cycles(CONV, 8, 8)


def test_memory() -> None:
    # 18 432 bytes of weights and 6 272 of input fit into their buffers: each is moved once, 12 544 of output
    assert ARRAY.memory_cycles(CONV, 8, 8) == (18_432 + 6_272 + 12_544) / 16
    assert ARRAY.memory_cycles(CONV, 2, 4) == (4_608 + 3_136 + 6_272) / 16
    # 512 000 bytes of weights: eight parts of 64 KiB, the input is read for each
    assert ARRAY.memory_cycles(LINEAR, 8, 8) == (512_000 + 8 * 512 + 1_000) / 16 or (
        ARRAY.memory_cycles(LINEAR, 8, 8) == (512 + 512_000 + 1_000) / 16
    )
    small = dataclasses.replace(ARRAY, weight_buffer_kib=1, input_buffer_kib=1)
    # weights first: 18 432 + 18 · 6 272 = 131 328; input first: 6 272 + 7 · 18 432 = 135 296
    assert small.memory_cycles(CONV, 8, 8) == (131_328 + 12_544) / 16


def test_the_slower_of_both_counts_in_milliseconds() -> None:
    assert ARRAY.cost(CONV, 8, 8) == (18 * 2 * 196 + 46) / 100e3
    assert ARRAY.cost(LINEAR, 8, 8) == ARRAY.memory_cycles(LINEAR, 8, 8) / 100e3


def test_utilization_of_depthwise_convolutions_is_low() -> None:
    busy = DEPTHWISE.macs / (16 * 32)
    assert busy / ARRAY.compute_cycles(DEPTHWISE, 8, 8) < 0.02
    assert CONV.macs / (16 * 32) / ARRAY.compute_cycles(CONV, 8, 8) > 0.95


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    found = Accelerator.load(name)
    assert found.name == name
    assert found.cost(CONV, 2, 8) < found.cost(CONV, 8, 8)


def test_float_is_refused() -> None:
    with pytest.raises(HardwareError, match="conv has 4-bit weights and 32-bit inputs"):
        ARRAY.cost(CONV, 4, 32)


GOOD = """name = "mine"
rows = 8
columns = 8
clock_mhz = 100
multiplier = "serial"
weight_buffer_kib = 16
input_buffer_kib = 16
dram_gb_s = 1.5
"""


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "npu.toml").write_text(GOOD)
    assert Accelerator.load(tmp_path / "npu.toml") == Accelerator("mine", 8, 8, 100, "serial", 16, 16, 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("rows = 8\n", ""), "lacks 'rows'"),
        (GOOD + "cores = 2\n", "unknown field 'cores'"),
        (GOOD.replace('"serial"', '"magic"'), "multiplier is 'magic'; choose fusible or serial"),
        (GOOD.replace("rows = 8", "rows = 0"), "rows is 0; give a positive number"),
        (GOOD.replace("rows = 8", "rows = 8.5"), "rows is 8.5; give a whole number"),
        (GOOD.replace("rows = 8", 'rows = "8"'), "rows is '8'; give a number"),
        ("rows = ", "not valid TOML"),
        (None, "give a TOML file or one of bitfusion, edge-fpga, mobile-npu"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "npu.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(HardwareError, match=message):
        Accelerator.load(file)
