"""`quantize`: from a trained network and unlabeled inputs to a quantized network. The pipeline, top to bottom."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq.checkpoint import program
from brecq.checkpoint.directory import versions
from brecq.checkpoint.resume import RunState, alone_in_run_dir, fingerprint
from brecq.checks import check_request, check_runs, check_weights
from brecq.config import QuantConfig
from brecq.converted import ranges
from brecq.data.collect import collect
from brecq.data.dataset import Dataset
from brecq.data.signature import Signature
from brecq.errors import ConfigError
from brecq.forward import Inputs, tensors, unwrap
from brecq.graph import check, ops
from brecq.graph.blocks import Network, extract
from brecq.graph.capture import capture, example_batch
from brecq.graph.convert import convert
from brecq.graph.dataflow import Dataflow
from brecq.graph.environment import in_float32, learning
from brecq.graph.noise import SAMPLES, tensor_noise
from brecq.graph.partition import BlockSpec, partition
from brecq.graph.placement import BrecqQuantizer
from brecq.graph.prepare import prepare
from brecq.graph.scope import float_weights, scope
from brecq.graph.submodule import Submodule
from brecq.precision.allocation import BitAllocation
from brecq.precision.delivery import check_layers, start_from
from brecq.progress import Progress
from brecq.quant import kernels
from brecq.quant.fake_quant import Mode, set_mode
from brecq.reconstruct import passes
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.memory import reuse_freed
from brecq.report import Report, ScopeEntry
from brecq.result import QuantResult


@alone_in_run_dir
@learning()
def quantize(
    model: nn.Module,
    calibration: Iterable[Any] | Tensor | Dataset,
    config: QuantConfig | None = None,
    *,
    quantizer: Quantizer | None = None,
    allocation: BitAllocation | None = None,
    learned: Mapping[str, Tensor] | None = None,
    submodule: str | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> QuantResult:
    """Quantize a trained network by block reconstruction.

    Args:
        model: any module that `torch.export` can capture; it is left unchanged. Of a network in another floating-point
            type than float32 a float32 copy is quantized, and the report says so.
        calibration: inputs like those the network will see, unlabeled: a tensor [N, ...], an iterable of batches
            (tensors, tuples of the model's positional inputs, dictionaries by the names of its parameters), a
            `DataLoader`, or a `Dataset`; see `brecq.data.collect`.
        config: bits, placement, granularity, recipe, seed; 4-bit weights and 8-bit activations by default.
        quantizer: a PT2E quantizer that decides what is quantized in place of `config`'s bits and placement.
        allocation: bits per layer from `brecq.search`; they replace those of `config`, its rules excepted.
        learned: codes of weights to start learning from (`SensitivityTable.codes`), where they fit.
        submodule: quantize only the submodule of this name, with the inputs that it receives, and put it back.
        run_dir: folder for the state of the run; with `resume`, continue there after the last finished block.
        progress: receives what the run is doing. device: where blocks run.

    Returns:
        The converted network and a report.

    Raises:
        ConfigError, DataError, CaptureError, PartitionError, CheckpointError: before any long work starts.
    """
    config = config or QuantConfig()
    check_request(model, config, QuantConfig, device)
    if allocation is not None and quantizer is not None:
        raise ConfigError("allocation and quantizer both decide on bits; give one of them")
    if allocation is not None:
        config = allocation.apply(config)
    progress = progress or Progress()
    began = time.perf_counter()
    if resume and run_dir is None:
        raise ConfigError("resume=True needs run_dir: the folder of the run to continue")
    data = collect(calibration, None, model=model)
    if data.origin:
        progress.note(f"inputs: {data.origin}")
    model, copied = in_float32(model)
    if copied:
        progress.note(copied)
    check_weights(model)
    check_runs(model, data)
    target = Submodule(model, submodule, data.arguments()) if submodule is not None else None
    network_model, arguments = (unwrap(model), data.arguments()) if target is None else (target.module, target.inputs)
    inputs = tensors(arguments)

    progress.stage("capturing the network")
    prepared, specs = _prepare(network_model, example_batch(arguments), config, quantizer, allocation, arguments)
    if run_dir is not None:
        program.check(prepared)
    prepared.to(device)
    started = start_from(prepared, learned or {})
    entries = scope(prepared, specs)
    progress.scope(entries)
    network = extract(prepared, specs)
    check.check_blocks(network, [value.to(device) for value in tensors(check.few(arguments))])
    state = _run_state({**prepared.state_dict(), **started}, network, data, config, run_dir, resume)
    cache = ActivationCache(torch.device(device), config.memory_budget, None if run_dir is None else Path(run_dir))
    try:
        with reuse_freed(cache.device):
            reports, forwards = passes.run(network, inputs, data.labels, config, cache, state, progress)
    finally:
        cache.close()

    progress.stage("converting")
    set_mode(prepared, Mode.HARD)
    noise = tensor_noise(prepared, [value[:SAMPLES].to(device) for value in inputs])
    converted = convert(prepared)
    differs = check.check_converted(prepared, converted, [value[: check.SAMPLES].to(device) for value in inputs])
    recipe = config.recipe
    left = ranges.record(converted, inputs, device, recipe.range_norm, recipe.range_candidates)
    notes = [f"fake quantization kernels: {kernels.backend()}"]
    notes += [differs] if differs else []
    if data.origin:
        notes.append(f"inputs: {data.origin}")
    left_in_float = float_weights(entries)
    notes += [f"parameters in float: {left_in_float}"] if left_in_float else []
    notes += [copied] if copied else []
    notes += [spec.joined for spec in specs if spec.joined]
    if started:
        notes.append(f"{len(started)} weights started from the codes that the sensitivity table learned")
    report = Report(
        entries, reports, config.to_dict(), time.perf_counter() - began, versions(), data.digest(), forwards,
        samples=len(data), notes=notes, allocation=None if allocation is None else allocation.to_dict(),
        tensors=noise,
    )  # fmt: skip
    progress.close()
    examples = tensors(example_batch(arguments))
    return QuantResult(converted, report, config, examples, wrapped=target, run_state=state, ranges=left)


@dataclass(frozen=True)
class BlockSummary:
    """One block as `inspect` shows it. `macs` are multiply-accumulates per sample."""

    name: str
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """What `quantize` would do: blocks in order, and the quantization scope."""

    blocks: list[BlockSummary]
    scope: list[ScopeEntry]


@learning()
def inspect(
    model: nn.Module,
    example_inputs: Inputs,
    config: QuantConfig | None = None,
    *,
    quantizer: Quantizer | None = None,
    submodule: str | None = None,
) -> Inspection:
    """The blocks and the quantization scope of a network, without quantizing it.

    Args:
        example_inputs: each [N, ...]: positional inputs, or a dictionary by the names of `forward`'s parameters.

    Raises:
        ConfigError, DataError, CaptureError, PartitionError.
    """
    config = config or QuantConfig()
    check_request(model, config, QuantConfig)
    check_weights(model)
    inputs = Signature(model).order(example_inputs)
    model, _ = in_float32(model)
    if submodule is not None:
        target = Submodule(model, submodule, inputs)
        model, inputs = target.module, target.inputs
    prepared, specs = _prepare(model, example_batch(inputs), config, quantizer)
    network = extract(prepared, specs)
    flow = Dataflow(prepared)
    summaries = []
    for spec, block in zip(specs, network.blocks, strict=True):
        parameters = sum(value.numel() for value in block.module.parameters())
        macs = sum(ops.macs(node) for node in flow.ops[spec.start : spec.stop] if ops.kind(node))
        summaries.append(BlockSummary(block.name, block.layers, block.inputs, block.outputs, parameters, macs))
    return Inspection(summaries, scope(prepared, specs))


def _prepare(
    model: nn.Module,
    examples: Inputs,
    config: QuantConfig,
    quantizer: Quantizer | None,
    allocation: BitAllocation | None = None,
    checked_on: Inputs | None = None,
) -> tuple[GraphModule, list[BlockSpec]]:
    captured = capture(model, examples)
    reference = None if checked_on is None else check.FloatNetwork(model, checked_on)
    if reference is not None:
        reference.check(captured, "the captured graph")
    if allocation is not None:
        check_layers(captured, allocation)
    prepared = prepare(captured, quantizer or BrecqQuantizer(config))
    if reference is not None:
        reference.check(prepared, "the prepared graph")
    specs = partition(prepared, config.granularity, config.blocks)
    for spec in specs:
        if spec.joined:
            warnings.warn(f"{spec.joined}: they are learned together, with more memory and time", stacklevel=3)
    return prepared, specs


def _run_state(
    weights: Mapping[str, Tensor],
    network: Network,
    data: Dataset,
    config: QuantConfig,
    run_dir: Path | str | None,
    resume: bool,
) -> RunState | None:
    if run_dir is None or config.method == "rtn":
        return None
    relevant = {key: value for key, value in config.to_dict().items() if key != "memory_budget"}
    relevant["recipe"] = {k: v for k, v in relevant["recipe"].items() if k not in ("tuning", "tune_lr")}  # of no block
    blocks = [f"{block.name}: {', '.join(block.layers)}" for block in network.blocks]
    mark = fingerprint(relevant, weights, data.digest(), blocks)
    return RunState(run_dir, mark, resume=resume)
