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
from brecq.devices import device_of, move
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
from brecq.graph.placement import BrecqQuantizer, activation_scheme
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
from brecq.reconstruct.run import Run
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
    device: str | torch.device = "auto",
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
        progress: receives what the run is doing.
        device: where blocks run; `auto` is the CUDA device where there is one.

    Returns:
        The converted network, on the device that the model is on, and a report.

    Raises:
        ConfigError, DataError, CaptureError, PartitionError, CheckpointError: before any long work starts.
    """
    config, progress, began = config or QuantConfig(), progress or Progress(), time.perf_counter()
    device = check_request(model, config, QuantConfig, device)
    config = _settled(config, quantizer, allocation)
    if resume and run_dir is None:
        raise ConfigError("resume=True needs run_dir: the folder of the run to continue")
    subject = _subject(model, calibration, submodule, progress)
    request = _Request(config, quantizer, allocation, learned or {}, run_dir is not None)
    plan = _plan(subject, request, device, progress)
    state = _run_state(plan, subject.data, config, run_dir, resume)
    cache = ActivationCache(device, config.memory_budget, run_dir)
    if device.type == "cuda":
        cache.notes.append(f"computed on {torch.cuda.get_device_name(device)}")
        progress.note(cache.notes[0])
    run = Run(plan.network, tensors(subject.arguments), config, cache, subject.data.labels, state, progress)
    with run.working():
        reports, forwards = passes.run(run)
    progress.stage("converting")
    result = _convert(run, subject, plan)
    result.report.blocks, result.report.block_forwards = reports, forwards
    result.report.allocation = None if allocation is None else allocation.to_dict()
    result.report.seconds = time.perf_counter() - began
    progress.close()
    return result


@dataclass(frozen=True)
class _Subject:
    """What is quantized: a network, or a submodule of one, with the inputs that it receives. `notes`: on the way."""

    model: nn.Module
    arguments: Inputs
    data: Dataset
    wrapped: Submodule | None
    notes: list[str]


@dataclass(frozen=True)
class _Request:
    """What is asked for. `to_folder`: the result will be saved."""

    config: QuantConfig
    quantizer: Quantizer | None
    allocation: BitAllocation | None
    learned: Mapping[str, Tensor]
    to_folder: bool


@dataclass(frozen=True)
class _Plan:
    """What will be done. `started`: codes that weights start from, by the names of the fake-quantizers."""

    network: Network
    specs: list[BlockSpec]
    scope: list[ScopeEntry]
    started: dict[str, Tensor]


def _settled(config: QuantConfig, quantizer: Quantizer | None, allocation: BitAllocation | None) -> QuantConfig:
    if allocation is not None and quantizer is not None:
        raise ConfigError("allocation and quantizer both decide on bits; give one of them")
    return config if allocation is None else allocation.apply(config)


def _subject(
    model: nn.Module, calibration: Iterable[Any] | Tensor | Dataset, submodule: str | None, progress: Progress
) -> _Subject:
    data = collect(calibration, None, model=model)
    model, copied = in_float32(model)
    notes = [note for note in (data.origin and f"inputs: {data.origin}", copied) if note]
    for note in notes:
        progress.note(note)
    check_weights(model)
    check_runs(model, data)
    if submodule is None:
        return _Subject(unwrap(model), data.arguments(), data, None, notes)
    target = Submodule(model, submodule, data.arguments())
    return _Subject(target.module, target.inputs, data, target, notes)


def _plan(subject: _Subject, request: _Request, device: torch.device, progress: Progress) -> _Plan:
    progress.stage("capturing the network")
    arguments = subject.arguments
    prepared, specs = _prepare(
        subject.model, example_batch(arguments), request.config, request.quantizer, request.allocation, arguments
    )
    if request.to_folder:
        program.check(prepared)
    move(prepared, device)
    started = start_from(prepared, request.learned)
    entries = scope(prepared, specs)
    progress.scope(entries)
    network = extract(prepared, specs)
    check.check_blocks(network, [value.to(device) for value in tensors(check.few(arguments))])
    return _Plan(network, specs, entries, started)


def _convert(run: Run, subject: _Subject, plan: _Plan) -> QuantResult:
    """The result, and the report as far as the converted network tells it."""
    prepared, device, recipe = plan.network.graph, run.cache.device, run.config.recipe
    set_mode(prepared, Mode.HARD)
    noise = tensor_noise(prepared, [value[:SAMPLES].to(device) for value in run.inputs])
    converted = convert(prepared)
    differs = check.check_converted(prepared, converted, [value[: check.SAMPLES].to(device) for value in run.inputs])
    signed = activation_scheme(run.config) == "signed"
    left = ranges.record(converted, run.inputs, device, recipe.range_norm, recipe.range_candidates, signed)
    move(converted, device_of(subject.model))
    left_in_float = float_weights(plan.scope)
    notes = [f"fake quantization kernels: {kernels.backend(device)}", *([differs] if differs else []), *subject.notes]
    notes += [f"parameters in float: {left_in_float}"] if left_in_float else []
    notes += dict.fromkeys(run.cache.notes)
    notes += [spec.joined for spec in plan.specs if spec.joined]
    if plan.started:
        notes.append(f"{len(plan.started)} weights started from the codes that the sensitivity table learned")
    report = Report(
        plan.scope, [], run.config.to_dict(), 0.0, versions(), subject.data.digest(), samples=len(subject.data),
        notes=notes, tensors=noise,
    )  # fmt: skip
    examples = tensors(example_batch(subject.arguments))
    return QuantResult(
        converted, report, run.config, examples, wrapped=subject.wrapped, run_state=run.state, ranges=left
    )


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
        ConfigError, DataError, CaptureError, PartitionError: as `quantize`.
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
    plan: _Plan, data: Dataset, config: QuantConfig, run_dir: Path | str | None, resume: bool
) -> RunState | None:
    if run_dir is None or config.method == "rtn":
        return None
    relevant = {key: value for key, value in config.to_dict().items() if key != "memory_budget"}
    relevant["recipe"] = {k: v for k, v in relevant["recipe"].items() if not k.startswith("tun")}  # of no block
    blocks = [f"{block.name}: {', '.join(block.layers)}" for block in plan.network.blocks]
    weights = {**plan.network.graph.state_dict(), **plan.started}
    return RunState(run_dir, fingerprint(relevant, weights, data.digest(), blocks), resume=resume)
