"""The facts of a page: plain numbers and words about a result, gathered from its program and its report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from brecq.checkpoint.tensors import IntegerTensor, PackedWeight, Stored, collect_tensors, stored_bytes
from brecq.converted.layers import weighted_layers
from brecq.graph.ops import WEIGHTED
from brecq.report import BlockReport, ScopeEntry, TensorNoise
from brecq.result import QuantResult

FLOAT_BITS = 32


@dataclass(frozen=True)
class Layer:
    """One weighted layer.

    Attributes:
        bits: of its weight, 32 in float. parameters: of the weight. bytes: of it in storage, 0 where an earlier layer
            stores it. codes: how often each code of the grid is used, from the lowest `code_low` on; empty in float.
        noise: of its output against the float network's; `None` where it was not recorded.
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

    @property
    def sqnr(self) -> float | None:
        """In dB; `None` where it was not recorded or there is no noise."""
        value = math.inf if self.noise is None else self.noise.sqnr
        return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Facts:
    """Everything about a result. `blocks` of its last stage that learned in blocks, `tuning` the pass after them."""

    layers: list[Layer]
    blocks: list[BlockReport]
    tuning: BlockReport | None
    floats: list[tuple[str, str, int]]
    weight_bytes: int
    float_bytes: int
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
    entries = [entry for entry in report.scope if entry.weights and entry.kind in WEIGHTED.values()]  # no look-ups
    noise = {each.layer: each for each in report.tensors}
    seen: set[str] = set()
    layers = []
    for entry, layer in zip(entries, (layer for each in programs for layer in weighted_layers(each)), strict=True):
        value = stored.get(layer.weight or "")
        layers.append(_layer(entry, value, noise.get(entry.layer), stored=layer.weight in seen))
        seen.add(layer.weight or "")
    blocks = [block for block in report.blocks if block.stage != "tuning"]
    last = blocks[-1].stage if blocks else ""
    return Facts(
        layers,
        [block for block in blocks if block.stage == last],
        next((block for block in report.blocks if block.stage == "tuning"), None),
        left_in_float(report.scope),
        result.weight_bytes(),
        result.float_bytes(),
        result,
    )


def left_in_float(scope: list[ScopeEntry]) -> list[tuple[str, str, int]]:
    """Kind of operator, reason, number: everything that computes in float, weighted layers first."""
    found: dict[tuple[str, str], int] = {}
    for entry in sorted(scope, key=lambda entry: not entry.weights):
        if entry.weights == "float" or (not entry.weights and entry.reason):
            key = (entry.kind, entry.reason)
            found[key] = found.get(key, 0) + 1
    return [(kind, reason, count) for (kind, reason), count in found.items()]


def _layer(entry: ScopeEntry, value: Stored | None, noise: TensorNoise | None, stored: bool) -> Layer:
    codes: list[int] = []
    bits, low, parameters = FLOAT_BITS, 0, 0
    if isinstance(value, PackedWeight):
        bits, low = value.bits, value.low
        whole = value.codes().flatten().to(torch.int64) - low
        codes = torch.bincount(whole, minlength=1 << bits)[: 1 << bits].tolist()
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


def _flat(values: dict[str, Any], prefix: str = "") -> Any:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)
