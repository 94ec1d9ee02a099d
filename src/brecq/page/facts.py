"""The facts of a page: plain numbers and words about a result, gathered from its program and its report."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule

from brecq.checkpoint.tensors import IntegerTensor, PackedWeight, Stored, collect_tensors, stored_bytes
from brecq.converted.layers import weighted_layers
from brecq.graph.ops import WEIGHTED
from brecq.report import BlockReport, ScopeEntry, TensorNoise
from brecq.result import QuantResult
from brecq.units import measure

FLOAT_BITS, FLOAT_BYTES = 32, 4


@dataclass(frozen=True)
class Layer:
    """One weighted layer, or another operator that holds parameters, such as a recurrent one.

    Attributes:
        bits: of its weight, 32 in float. parameters: of the weight, or of the operator. bytes: of them in storage, 0
            where an earlier layer stores them. codes: how often each code of the grid is used, from the lowest
            `code_low` on; empty in float.
        noise: of its output against the float network's; `None` where it was not recorded. able: brecq can quantize
            such layers. alone: its noise is without that of the parts of the network before its own.
    """

    name: str
    block: str
    kind: str
    weights: str
    inputs: str
    output: str
    reason: str
    bits: int
    parameters: int
    bytes: int
    codes: list[int]
    code_low: int
    noise: TensorNoise | None
    able: bool = True
    alone: bool = False

    @property
    def input_bits(self) -> int:
        """Of its input, 32 in float."""
        first = self.inputs.split(" ")[0]
        return int(first) if first.isdecimal() else FLOAT_BITS

    @property
    def sqnr(self) -> float | None:
        """In dB; `None` where it was not recorded or there is no noise."""
        value = math.inf if self.noise is None else self.noise.sqnr
        return value if math.isfinite(value) else None

    @property
    def shown_sqnr(self) -> str:
        """In dB, `∞` without noise; empty where it was not recorded."""
        return "" if self.noise is None else measure("SQNR dB", self.noise.sqnr)


@dataclass(frozen=True)
class Facts:
    """Everything about a result. `blocks` of its last stage that learned in blocks, `tunings` the passes after
    them, one a part; `floats`: see `left_in_float`; `share`: percent of the parameters whose layers have quantized
    weights."""

    layers: list[Layer]
    blocks: list[BlockReport]
    tunings: list[BlockReport]
    floats: list[tuple[str, str, int, int]]
    weight_bytes: int
    float_bytes: int
    share: float
    result: QuantResult

    def settings(self) -> list[tuple[str, str]]:
        """The configuration, field by field, a recipe's fields one level down."""
        return list(_flat(self.result.config.to_dict()))


def gather(result: QuantResult) -> Facts:
    """Gather the facts of a result, fresh or loaded."""
    report = result.report
    graphs = [part.converted for part in result.parts.values()] or [result.converted]
    programs = [graph for graph in graphs if isinstance(graph, GraphModule)]
    stored = {name: value for program in programs for name, value in collect_tensors(program).items()}
    noise = {each.layer: each for each in report.tensors}
    alone = tuple(report.alone(list(result.parts)))
    weighted = iter([layer for each in programs for layer in weighted_layers(each)])
    holders = Counter(entry.layer for entry in report.scope if _holds(entry))
    seen: set[str] = set()
    layers = []
    for entry in report.scope:
        if entry.weights and entry.kind in WEIGHTED.values():
            layer = next(weighted)
            value = stored.get(layer.weight or "")
            found = _layer(entry, value, noise.get(entry.layer), stored=layer.weight in seen)
            layers.append(replace(found, alone=within(entry.layer, alone)))
            seen.add(layer.weight or "")
        elif _holds(entry):
            name = entry.layer if entry.layer and holders[entry.layer] == 1 else f"{entry.layer} ({entry.op})".strip()
            layers.append(_holder(entry, name))
    assert next(weighted, None) is None, "the scope names every layer of the program"
    blocks = [block for block in report.blocks if block.stage != "tuning"]
    last = blocks[-1].stage if blocks else ""
    return Facts(
        layers,
        [block for block in blocks if block.stage == last],
        [block for block in report.blocks if block.stage == "tuning"],
        left_in_float(report.scope),
        result.weight_bytes(),
        result.float_bytes(),
        _quantized_share(report.scope),
        result,
    )


def within(name: str, parts: Sequence[str]) -> bool:
    """Whether a layer or an output, by its whole name, is of one of these parts of the network."""
    return any(re.match(rf"{re.escape(part)}(?:[.#]|$)", name) for part in parts)


def _holds(entry: ScopeEntry) -> bool:
    """Whether an operator that brecq does not quantize has parameters of its own, or shares them."""
    weighted = entry.weights and entry.kind in WEIGHTED.values()
    return not weighted and entry.weights in ("", "float") and entry.parameters > 0


def _quantized_share(scope: Sequence[ScopeEntry]) -> float:
    held = [(entry.parameters, entry.weights in ("", "float")) for entry in scope]
    return 100 * sum(count for count, floating in held if not floating) / max(sum(count for count, _ in held), 1)


def left_in_float(scope: list[ScopeEntry]) -> list[tuple[str, str, int, int]]:
    """Kind of operator, reason, number, bytes: everything that computes in float, what holds most parameters first."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in scope:
        if entry.weights == "float" or (not entry.weights and entry.reason):
            count, size = found.get((entry.kind, entry.reason), (0, 0))
            found[entry.kind, entry.reason] = count + 1, size + FLOAT_BYTES * entry.parameters
    ordered = sorted(found.items(), key=lambda each: -each[1][1])
    return [(kind, reason, count, size) for (kind, reason), (count, size) in ordered]


def _layer(entry: ScopeEntry, value: Stored | None, noise: TensorNoise | None, stored: bool) -> Layer:
    codes: list[int] = []
    bits, low, parameters = FLOAT_BITS, 0, 0
    if isinstance(value, PackedWeight):
        bits, low = value.bits, value.low
        whole = value.codes().flatten().to(torch.int64) - low
        symmetric = low == 1 - (1 << bits - 1)  # to the same number on both sides of 0: one code less
        codes = torch.bincount(whole, minlength=(1 << bits) - symmetric).tolist()
        parameters = whole.numel()
    elif isinstance(value, IntegerTensor):
        parameters = value.codes.numel()
    elif value is not None:
        parameters = value.numel()
    size = 0 if value is None or stored else stored_bytes({"weight": value})
    return Layer(
        entry.layer, entry.block, entry.kind, entry.weights, entry.inputs, entry.output, entry.reason,
        bits, parameters, size, codes, low, noise,
    )  # fmt: skip


def _holder(entry: ScopeEntry, name: str) -> Layer:
    """An operator whose parameters are float32 in any result."""
    return Layer(
        name, entry.block, entry.kind, "float", entry.inputs, entry.output, entry.reason,
        FLOAT_BITS, entry.parameters, FLOAT_BYTES * entry.parameters, [], 0, None, able=False,
    )  # fmt: skip


def _flat(values: dict[str, Any], prefix: str = "") -> Any:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
