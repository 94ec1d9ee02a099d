"""A precision-scalable systolic accelerator: latency per layer by a roofline.

The array has R rows and C columns of units. A unit has the bit-level resources of one 8 × 8 bit multiplication, and
does f narrower ones in a cycle, whose products it adds up:

    fusible   f = (8 / w') · (8 / a'), widths w' and a' rounded up to 2, 4, 8 (Bit Fusion: Sharma et al., ISCA 2018)
    serial    f = 8 / w, activations of up to 8 bits in parallel, weights bit by bit (as UNPU: Lee et al., ISSCC 2018)

Weights are stationary: rows take the K products of an output element (f of them a unit), columns the M output
channels of a group, and the P output positions stream through. Tiles of the array's size follow each other:

    compute = groups · ⌈K / (R·f)⌉ · ⌈M / C⌉ · max(P, R) + R + C - 2       cycles

max(P, R): the weights of the next tile are loaded, a row a cycle, while the positions of this one stream. A depthwise
convolution has K = kernel size and M = 1 for each of its groups: it uses a corner of the array, which no bit-width
changes.

    memory  = bytes moved / (bytes a cycle)                                 cycles
    bytes   = min(W + ⌈W / weight buffer⌉ · I, I + ⌈I / input buffer⌉ · W) + O

W, I, O are the bytes of weights, input and output at their bit-widths; the output is written as wide as the input was
read. The first form keeps a part of the weights and reads the input once for each, the second a part of the input.
Latency = max(compute, memory) / clock: both overlap, as buffers are double-buffered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from brecq.errors import HardwareError
from brecq.precision.budget import Cost
from brecq.precision.layers import Layer
from brecq.reading import read_toml
from brecq.settings import MOST
from brecq.text import shown

Multiplier = Literal["fusible", "serial"]
PRESETS = ("bitfusion", "edge-fpga", "mobile-npu")


@dataclass(frozen=True)
class Accelerator:
    """See the module's equations.

    Attributes:
        rows, columns: units. clock_mhz: in MHz. multiplier: how a unit does narrow multiplications.
        weight_buffer_kib, input_buffer_kib: on-chip, in KiB, one half of each double buffer.
        dram_gb_s: bandwidth in 10⁹ bytes a second.
    """

    name: str
    rows: int
    columns: int
    clock_mhz: float
    multiplier: Multiplier
    weight_buffer_kib: float
    input_buffer_kib: float
    dram_gb_s: float
    overhead: float = 0.0
    kind: Cost = "latency"

    def __post_init__(self) -> None:
        if self.multiplier not in get_args(Multiplier):
            raise HardwareError(f"multiplier is {shown(self.multiplier)}; choose {' or '.join(get_args(Multiplier))}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type not in ("int", "float") or field.name == "overhead":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise HardwareError(f"{field.name} is {shown(value)}; give a number")
            if not 0 < value <= MOST:
                raise HardwareError(f"{field.name} is {shown(value)}; give a positive number, {MOST} at most")
        if not isinstance(self.name, str):
            raise HardwareError(f"name is {shown(self.name)}; give a text")
        for name in ("rows", "columns"):
            if getattr(self, name) != int(getattr(self, name)):
                raise HardwareError(f"{name} is {getattr(self, name)!r}; give a whole number")

    def cost(self, layer: Layer, w_bits: int, a_bits: int) -> float:
        """Milliseconds per sample."""
        if w_bits > 8 or a_bits > 8:
            raise HardwareError(
                f"{layer.name} has {w_bits}-bit weights and {a_bits}-bit inputs; {self.name} computes on 2 to 8 bits: "
                "quantize weights and activations (-a 8, say)"
            )
        cycles = max(self.compute_cycles(layer, w_bits, a_bits), self.memory_cycles(layer, w_bits, a_bits))
        return cycles / (self.clock_mhz * 1e3)

    def fused(self, w_bits: int, a_bits: int) -> Fraction:
        """f: multiplications that a unit does in a cycle."""
        if self.multiplier == "serial":
            return Fraction(8, w_bits)
        return Fraction(8, _power(w_bits)) * Fraction(8, _power(a_bits))

    def compute_cycles(self, layer: Layer, w_bits: int, a_bits: int) -> float:
        """Cycles that the array is busy."""
        depth = math.ceil(layer.reduction / (self.rows * self.fused(w_bits, a_bits)))
        tiles = layer.groups * depth * math.ceil(layer.channels / self.columns)
        return tiles * max(layer.positions, self.rows) + self.rows + self.columns - 2

    def memory_cycles(self, layer: Layer, w_bits: int, a_bits: int) -> float:
        """Cycles that the memory is busy."""
        weights = math.prod(layer.weight_shape) * w_bits / 8
        inputs = layer.runs * math.prod(layer.input_shape) * a_bits / 8
        outputs = layer.runs * math.prod(layer.output_shape) * a_bits / 8
        weight_parts = math.ceil(weights / (self.weight_buffer_kib * 1024))
        input_parts = math.ceil(inputs / (self.input_buffer_kib * 1024))
        moved = min(weights + weight_parts * inputs, inputs + input_parts * weights) + outputs
        return moved / (self.dram_gb_s * 1e3 / self.clock_mhz)

    @classmethod
    def load(cls, source: str | Path) -> Accelerator:
        """A preset by name, or a TOML file with these fields.

        Raises:
            HardwareError: it is missing, not TOML, or a field is missing, unknown or out of range.
        """
        what = f"TOML file or one of {', '.join(PRESETS)}"
        with resources.as_file(resources.files(__package__) / "presets") as presets:
            file = presets / f"{source}.toml" if str(source) in PRESETS else Path(source)
            return cls.from_dict(read_toml(file, HardwareError, what), str(source))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> Accelerator:
        """From the fields of a TOML file; `source` is named in errors."""
        known = [f.name for f in dataclasses.fields(cls) if f.name not in ("kind", "overhead")]
        for name in values:
            if name not in known:
                raise HardwareError(f"{source} has an unknown field {name!r}; there are {', '.join(known)}")
        for name in known:
            if name not in values:
                raise HardwareError(f"{source} lacks {name!r}; it needs {', '.join(known)}")
        return cls(**values)


def _power(bits: int) -> int:
    """The width of the multiplication that does it: 2, 4 or 8 bits."""
    return next(width for width in (2, 4, 8) if bits <= width)
