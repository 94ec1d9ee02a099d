"""`inspect`: what `quantize` would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq.capture.export import example_batch
from brecq.checks import check_inputs, check_request, check_weights
from brecq.config import QuantConfig
from brecq.float32 import in_float32
from brecq.forward import Inputs, tensors
from brecq.graph import ops
from brecq.graph.counts import macs
from brecq.graph.dataflow import Dataflow
from brecq.graph.environment import learning
from brecq.partition.blocks import extract
from brecq.placement.scope import scope
from brecq.reconstruct import alone
from brecq.report import ScopeEntry, TensorLoss
from brecq.steps.plan import prepared_blocks
from brecq.steps.request import Request
from brecq.submodules import parts
from brecq.submodules.outside import outside
from brecq.submodules.submodule import Submodule


@dataclass(frozen=True)
class BlockSummary:
    """One block as `inspect` shows it. `macs` are multiply-accumulates a sample of its layers with weights."""

    name: str
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """What `quantize` would do: blocks in order, and the quantization scope; `losses` is what each tensor costs alone,
    the worst first, where that was asked for."""

    blocks: list[BlockSummary]
    scope: list[ScopeEntry]
    losses: list[TensorLoss] = field(default_factory=list)


@learning()
def inspect(
    model: nn.Module,
    example_inputs: Inputs,
    config: QuantConfig | None = None,
    *,
    quantizer: Quantizer | None = None,
    submodule: str | None = None,
    submodules: Sequence[str] | None = None,
    sensitivity: bool = False,
) -> Inspection:
    """The blocks and the quantization scope of a network, without quantizing it.

    Args:
        example_inputs: each [N, ...]: positional inputs, or a dictionary by the names of `forward`'s parameters.
        submodule: as for `quantize`. submodules: likewise.
        sensitivity: also measure what each quantized tensor costs alone, with weights rounded to nearest, on the first
            32 samples of `example_inputs`, which should be real ones then.

    Raises:
        ConfigError, DataError, CaptureError, PartitionError: as `quantize`.
    """
    config = config or QuantConfig()
    check_request(model, config, QuantConfig)
    check_weights(model)
    model, _ = in_float32(model)
    inputs = check_inputs(model, example_inputs)
    request = Request(config, quantizer)
    if submodules is not None:
        names = parts.check_names(model, submodules)
        found = []
        for part in parts.record(model, names, [inputs]):
            flat = parts.Flat(part.name, model.get_submodule(part.name), part.interface)
            found.append(_inspect(flat, part.inputs, replace(request, part=part.ends), sensitivity))
        blocks = [block for each in found for block in each.blocks]
        losses = sorted((loss for each in found for loss in each.losses), key=lambda loss: -loss.worst)
        entries = [*(entry for each in found for entry in each.scope), *outside(model, names)]
        return Inspection(blocks, entries, losses)
    if submodule is not None:
        target = Submodule(model, submodule, inputs)
        model, inputs = target.module, target.inputs
    return _inspect(model, inputs, request, sensitivity)


def _inspect(model: nn.Module, inputs: Inputs, request: Request, sensitivity: bool) -> Inspection:
    prepared, specs = prepared_blocks(model, example_batch(inputs), request)
    network = extract(prepared, specs)
    flow = Dataflow(prepared)
    summaries = []
    for spec, block in zip(specs, network.blocks, strict=True):
        parameters = sum(value.numel() for value in block.module.parameters())
        work = sum(macs(node) for node in flow.ops[spec.start : spec.stop] if ops.kind(node))
        summaries.append(BlockSummary(block.name, block.layers, block.inputs, block.outputs, parameters, work))
    entries, cpu = scope(prepared, specs), torch.device("cpu")
    losses = alone.losses(network, tensors(inputs), request.config, cpu) if sensitivity else []
    return Inspection(summaries, entries, losses)
