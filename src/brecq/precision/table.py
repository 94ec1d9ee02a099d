"""The sensitivity table: what each bit-width costs in loss, measured block by block, ready for any budget."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from brecq.checkpoint.resume import RunState
from brecq.config import QuantConfig, check_activation_bits
from brecq.errors import CheckpointError, ConfigError
from brecq.plain import build
from brecq.precision.layers import Knob, Layer
from brecq.precision.options import Cross, Metric, Quality
from brecq.reading import check_regular
from brecq.storage.arrays import read_sealed, write_arrays
from brecq.storage.files import refuse_strangers
from brecq.storage.files import write as write_file
from brecq.storage.sealed import parse, seal, unseal
from brecq.text import shown

METRICS: tuple[Metric, ...] = get_args(Metric)

VERSION = 1
TABLE, CODES = "sensitivity.json", "learned.safetensors"


@dataclass(frozen=True)
class Term:
    """The loss of one block with these knobs quantized to these bits and everything else in float.

    `losses` holds a number per metric.
    """

    block: str
    bits: Mapping[str, int]
    losses: Mapping[str, float]


@dataclass(frozen=True)
class SensitivityTable:
    """Sensitivities of a network, good for every budget, cost model and search.

    Attributes:
        layers, knobs: of the network, in order of execution. terms: what was measured, single knobs and pairs.
        other_bytes: size of all that no knob changes: biases, settled weights, scales.
        config: bits of activations, placement and schemes that were assumed, recipe of the `reconstructed` quality.
        quality: weights rounded to nearest (`fast`), or learned at every bit-width (`reconstructed`).
        cross: which pairs inside a block were measured. samples, data_digest: of the calibration data.
        block_forwards: forward passes of single blocks over the calibration set, learning aside, without those that
            an interrupted run had made before.
        seconds: wall time. codes: learned codes by `knob@bits`, int8 of the weight's shape.
    """

    layers: tuple[Layer, ...]
    knobs: tuple[Knob, ...]
    terms: tuple[Term, ...]
    other_bytes: int
    config: QuantConfig
    quality: Quality
    cross: Cross
    samples: int
    data_digest: str
    block_forwards: int
    seconds: float
    metadata: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    run_state: RunState | None = field(default=None, compare=False, repr=False)

    def diagonal(self, metric: Metric) -> dict[tuple[str, int], float]:
        """Loss of each knob alone at each of its bits, summed over the blocks that it acts in."""
        found: dict[tuple[str, int], float] = {}
        for term in self.terms:
            if len(term.bits) == 1:
                ((knob, bits),) = term.bits.items()
                found[knob, bits] = found.get((knob, bits), 0.0) + term.losses[metric]
        return found

    def crosses(self, metric: Metric) -> Iterator[tuple[tuple[str, int], tuple[str, int], float]]:
        """What two knobs of a block lose together beyond what they lose apart; negative where errors cancel."""
        alone = {
            (term.block, next(iter(term.bits.items()))): term.losses[metric]
            for term in self.terms
            if len(term.bits) == 1
        }
        for term in self.terms:
            if len(term.bits) == 2:
                first, second = term.bits.items()
                apart = alone[term.block, first] + alone[term.block, second]
                yield first, second, term.losses[metric] - apart

    def save(self, folder: Path | str) -> Path:
        """Write `sensitivity.json`, and `learned.safetensors` where codes were learned, into `folder`.

        Raises:
            CheckpointError: the folder cannot be written, or holds such a file that is not brecq's.
        """
        folder = Path(folder)
        refuse_strangers(folder, (TABLE, CODES), CheckpointError)
        if self.codes:
            write_arrays(folder / CODES, self.codes, {"format": "brecq codes"}, CheckpointError, sealed=True)
        else:
            (folder / CODES).unlink(missing_ok=True)  # of another table that was here
        write_file(folder / TABLE, seal(self.to_dict()).encode(), CheckpointError, parents=True)
        if self.run_state is not None:
            self.run_state.clear()
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> SensitivityTable:
        """Read what `save` wrote.

        Raises:
            CheckpointError: there is no table in the folder, or it is damaged or of another version.
        """
        file = Path(folder) / TABLE
        if not os.path.exists(file):
            raise CheckpointError(f"{file} is missing; give the folder that `brecq search` wrote")
        check_regular(file, CheckpointError, "sensitivity table")
        try:
            content = file.read_bytes()
            version = parse(content).get("version")
            if version != VERSION:  # the seal of another version may be another one
                raise CheckpointError(
                    f"{file} has version {shown(version)}, this brecq reads {VERSION}; measure it again"
                )
            values = unseal(content)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged: {error}; measure it again") from error
        try:
            return dataclasses.replace(cls.from_dict(values), codes=learned_codes(folder))
        except ConfigError as error:
            raise CheckpointError(f"{file} is damaged: {error}; measure it again") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON; without the learned codes."""
        plain = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("layers", "knobs", "terms", "config", "codes", "run_state")
        }
        return {
            "format": "brecq sensitivities",
            "version": VERSION,
            **plain,
            "config": self.config.to_dict(),
            "knobs": [dataclasses.asdict(knob) for knob in self.knobs],
            "layers": [layer.to_dict() for layer in self.layers],
            "terms": [dataclasses.asdict(term) for term in self.terms],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SensitivityTable:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        values = {key: value for key, value in values.items() if key not in ("format", "version")}
        found = build(cls, values, "the table", without=("codes", "run_state"))
        _check_whole(found)
        return found


def _check_whole(table: SensitivityTable) -> None:
    """Raise `ConfigError` where parts of a table speak of others that it does not have."""
    choices = {knob.name: knob.bits for knob in table.knobs}
    if not table.layers or len(choices) != len(table.knobs):
        raise ConfigError("it has no layers, or knobs of the same name")
    for name, bits in choices.items():
        if not bits or list(bits) != sorted(set(bits)):
            raise ConfigError(f"{name} chooses from {list(bits)}; bits ascend, each once")
        for width in bits:
            check_activation_bits(name, width)
    for layer in table.layers:
        for name in (layer.weight, layer.input):
            if name not in choices:
                raise ConfigError(f"layer {layer.name!r} names a knob {name!r} that is not there")
    alone = {(term.block, *next(iter(term.bits.items()))) for term in table.terms if len(term.bits) == 1}
    for term in table.terms:
        if not 1 <= len(term.bits) <= 2 or set(term.losses) != set(METRICS):
            raise ConfigError(
                f"a term of {term.block!r} has {len(term.bits)} knobs and the losses {', '.join(term.losses)}"
            )
        for name, width in term.bits.items():
            if width not in choices.get(name, ()) or (term.block, name, width) not in alone:
                raise ConfigError(f"a term of {term.block!r} has {name} at {width} bits, not measured alone")


def learned_codes(folder: Path | str) -> dict[str, Tensor]:
    """Codes that the table in `folder` learned, by `knob@bits`; empty for a `fast` table."""
    file = Path(folder) / CODES
    if not os.path.isfile(file):
        return {}
    try:
        return read_sealed(file)[0]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; measure the table again") from error
