"""A bit allocation: the result of a search, what `brecq quantize --bits-from` delivers."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from brecq.config import LayerRule, QuantConfig
from brecq.errors import CheckpointError, ConfigError
from brecq.plain import build
from brecq.precision.budget import Cost
from brecq.reading import read_json
from brecq.storage.files import write as write_file
from brecq.text import shown

ALLOCATION = "allocation.json"
VERSION = 1

SETTLED = (
    "weights", "activations", "first_last", "first_last_outputs", "placement", "weight_scheme", "activation_scheme",
    "rules",
)  # fmt: skip
"""Settings of a `QuantConfig` that an allocation decides."""


class LayerBits(NamedTuple):
    """Bits of a layer's weight and of its input; 32 is float."""

    weights: int
    activations: int


@dataclass(frozen=True)
class BitAllocation:
    """Bits for every layer of a network.

    Attributes:
        layers: by name, in order of execution.
        config: that the sensitivities were measured with: placement, schemes, what quantizes the tensors that no
            layer reads.
        loss: predicted, in the unit of `metric`. costs: what the allocation costs, by `size` (bytes), `bops`
            (bit-operations) and `latency` (ms). budgets: that it was searched for, in the same units.
        algorithm: that found it. hardware: the latency model's name, empty without.
    """

    layers: Mapping[str, LayerBits]
    config: QuantConfig
    loss: float
    costs: Mapping[Cost, float]
    budgets: Mapping[Cost, float]
    algorithm: str
    metric: str
    hardware: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def apply(self, config: QuantConfig) -> QuantConfig:
        """`config` with the bits, placement and schemes of this allocation.

        Rules of `config` stand behind those of the allocation: they win.
        """
        own = tuple(LayerRule(glob.escape(name), *bits) for name, bits in self.layers.items())
        settled = {name: getattr(self.config, name) for name in SETTLED if name != "rules"}
        return config.replace(**settled, rules=own + config.rules)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return {
            "format": "brecq allocation",
            "version": VERSION,
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "layers": {name: bits._asdict() for name, bits in self.layers.items()},
            "config": self.config.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BitAllocation:
        """The inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            CheckpointError: of another version. ConfigError: a width that there is not.
        """
        values = dict(values)
        values.pop("format", None)
        version = values.pop("version", None)
        if version != VERSION:
            raise CheckpointError(
                f"the allocation has version {shown(version)}, this brecq reads {VERSION}; search again"
            )
        found = build(cls, values, "the allocation")
        for name, bits in found.layers.items():
            LayerRule(name, *bits)  # checks the widths
        return found

    def save(self, file: Path | str) -> Path:
        """Write the allocation as JSON."""
        file = Path(file)
        write_file(file, (json.dumps(self.to_dict(), indent=1) + "\n").encode(), CheckpointError, parents=True)
        return file

    @classmethod
    def load(cls, path: Path | str) -> BitAllocation:
        """Read an allocation: a JSON file, or the folder that `brecq search` wrote.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = Path(path)
        file = path / ALLOCATION if os.path.isdir(path) else path
        if not os.path.exists(file):
            raise CheckpointError(f"{file} is missing; give the folder that `brecq search` wrote, or a file of it")
        values = read_json(file, CheckpointError, "bit allocation")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise CheckpointError(f"{file} is no bit allocation: {error}; search again") from error
