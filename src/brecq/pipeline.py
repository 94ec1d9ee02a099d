"""`quantize`: from a trained network and unlabeled inputs to a quantized network. The pipeline, top to bottom."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer

from brecq import ranks
from brecq.checkpoint import program
from brecq.checkpoint.directory import versions
from brecq.checkpoint.resume import RunState, agree, alone_in_run_dir, fingerprint
from brecq.checks import check_request, check_runs, check_weights, running
from brecq.composite import CompositeResult
from brecq.config import QuantConfig
from brecq.converted import ranges
from brecq.data.calls import Calls, collect_calls
from brecq.data.collect import collect
from brecq.data.dataset import Dataset
from brecq.data.dataset import check as check_data
from brecq.data.signature import Signature
from brecq.devices import device_of, move, on_device
from brecq.errors import CheckpointError, ConfigError, DataError, ExportError, PartitionError
from brecq.float32 import in_float32
from brecq.forward import Inputs, tensors, unwrap
from brecq.graph import check, evidence, ops, parts
from brecq.graph.blocks import Network, extract
from brecq.graph.capture import capture, example_batch
from brecq.graph.convert import convert
from brecq.graph.dataflow import Dataflow
from brecq.graph.environment import learning
from brecq.graph.losses import output_loss, tensor_losses
from brecq.graph.noise import SAMPLES, tensor_noise
from brecq.graph.outputs import weakest
from brecq.graph.outside import outside
from brecq.graph.partition import BlockSpec, partition
from brecq.graph.placement import BrecqQuantizer, End, activation_scheme
from brecq.graph.prepare import prepare
from brecq.graph.scope import float_weights, scope
from brecq.graph.submodule import Submodule
from brecq.precision.allocation import BitAllocation
from brecq.precision.delivery import check_layers, start_from
from brecq.progress import Progress
from brecq.quant import kernels
from brecq.quant.fake_quant import Mode, set_mode
from brecq.ranks import together
from brecq.reconstruct import alone, passes
from brecq.reconstruct.cache import ActivationCache
from brecq.reconstruct.need import left_for_caches
from brecq.reconstruct.run import Run
from brecq.rehearsal import refusal
from brecq.report import Report, ScopeEntry, TensorLoss
from brecq.result import QuantResult


@together
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
    submodules: Sequence[str] | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    device: str | torch.device = "auto",
) -> QuantResult:
    """Quantize a trained network by block reconstruction.

    In an initialized `torch.distributed` group all processes call it, with the same arguments (`device` aside), and
    share the work; all return the same result. Inside `brecq.ranks.alone()` a process works by itself.

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
        submodules: quantize these, each with the inputs that it receives when those called before it are quantized,
            and put them back: a `CompositeResult`. They may take and return tensors in lists and dictionaries. Of
            detectors the calibration may be an iterable of lists of pictures [C, H, W] of any sizes.
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
    if config.auto_high_precision and quantizer is not None:
        raise ConfigError("auto_high_precision and quantizer both decide on bits; give one of them")
    request = _Request(config, quantizer, allocation, learned or {}, run_dir is not None)
    if submodules is not None:
        if submodule is not None or allocation is not None or learned:
            raise ConfigError("submodules goes with neither submodule nor the bits of a search; give one of them")
        whole = _quantize_parts(model, calibration, submodules, request, run_dir, resume, progress, device)
        whole.report.seconds = time.perf_counter() - began
        progress.close()
        return whole
    subject = _subject(model, calibration, submodule, progress)
    share = ranks.current().share(len(subject.data))
    request = _with_outliers_raised(subject, request, device, progress)
    config = request.config
    if not resume:
        _rehearse(subject, config, progress)
    plan = _plan(subject, request, device, progress)
    room = left_for_caches(plan.network, config, subject.copied)
    state = _run_state([plan], subject.data, config, run_dir, resume)
    cache = ActivationCache(device, room, run_dir)
    if device.type == "cuda":
        cache.notes.append(f"computed on {torch.cuda.get_device_name(device)}")
        progress.note(cache.notes[0])
    inputs = tuple(value[share.rows] for value in tensors(subject.arguments))
    labels = None if subject.data.labels is None else subject.data.labels[share.rows]
    run = Run(plan.network, inputs, config, cache, labels, state, progress, part=share)
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
    """What is quantized: a network, or a submodule of one, with the inputs that it receives. `notes`: on the way.
    `copied`: bytes of a copy that had to be made of it."""

    model: nn.Module
    arguments: Inputs
    data: Dataset
    wrapped: Submodule | None
    notes: list[str]
    copied: int = 0


@dataclass(frozen=True)
class _Request:
    """What is asked for. `to_folder`: the result will be saved. `part`: of a part of a network, the ends it holds."""

    config: QuantConfig
    quantizer: Quantizer | None = None
    allocation: BitAllocation | None = None
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    to_folder: bool = False
    part: frozenset[End] | None = None


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
    if config.target is not None and quantizer is not None:
        raise ConfigError("target and quantizer both decide what is quantized; give one of them")
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
    size = sum(value.nbytes for value in model.parameters()) if copied else 0
    if submodule is None:
        return _Subject(unwrap(model), data.arguments(), data, None, notes, size)
    target = Submodule(model, submodule, data.arguments())
    return _Subject(target.module, target.inputs, data, target, notes, size)


def _rehearse(subject: _Subject, config: QuantConfig, progress: Progress) -> None:
    """Refuse what a target's format will not take before anything is learned for it."""
    if config.target is None or config.method != "reconstruct":
        return
    progress.stage(f"rehearsing the export for {config.target}")
    refused = ranks.current().first(lambda: refusal(quantize, subject.model, subject.arguments, config))
    if refused:
        raise ExportError(refused)


def _plan(subject: _Subject, request: _Request, device: torch.device, progress: Progress) -> _Plan:
    progress.stage("capturing the network")
    arguments = subject.arguments
    prepared, specs = _prepare(subject.model, example_batch(arguments), request, arguments)
    _check_savable(prepared, tensors(example_batch(arguments)), request, subject.notes)
    few = evidence.few_values(prepared, min(len(subject.data), request.config.recipe.range_samples))
    if few is not None:
        subject.notes.append(few)
        warnings.warn(few, stacklevel=3)
    move(prepared, device)
    started = start_from(prepared, request.learned)
    entries = scope(prepared, specs)
    progress.scope(entries)
    network = extract(prepared, specs)
    check.check_blocks(network, [value.to(device) for value in tensors(check.few(arguments))])
    return _Plan(network, specs, entries, started)


def _with_outliers_raised(subject: _Subject, request: _Request, device: torch.device, progress: Progress) -> _Request:
    """With `auto_high_precision`, rules for the tensors that lose too much; the configuration's own rules win."""
    config = request.config
    if not config.auto_high_precision:
        return request
    progress.stage("measuring what each tensor loses alone")
    prepared, specs = _prepare(subject.model, example_batch(subject.arguments), request)
    move(prepared, device)
    network = extract(prepared, specs)
    found = ranks.current().first(lambda: alone.losses(network, tensors(subject.arguments), config, device))
    named = [
        f"{each.kind} {each.tensor} ({each.bits} bits, {each.output_sqnr:.1f} dB alone)"
        for each in alone.outliers(found)
    ]
    note = f"raised: {'; '.join(named)}" if named else "no tensor loses too much alone: none was raised"
    progress.note(note)
    subject.notes.append(note)
    return replace(request, config=replace(config, rules=(*alone.raised(found), *config.rules)))


def _most_lossy(prepared: GraphModule, config: QuantConfig, inputs: Sequence[Tensor]) -> list[str]:
    """Of a network of 8 bits whose outputs are far off: the tensors that cost most, and what to do about them."""
    if (
        min(config.weights, config.activations) < 8
        or max(output_loss(prepared, inputs).values(), default=0.0) < alone.LIMIT
    ):
        return []
    found = [each for each in tensor_losses(prepared, inputs) if each.worst > alone.LIMIT / 4][:3]
    set_mode(prepared, Mode.HARD)
    return [
        f"{each.kind} {each.tensor} alone leaves an output {each.output_sqnr:.1f} dB at {each.bits} bits: "
        f"{alone.remedy(each)}, or --auto-high-precision"
        for each in found
    ]


def _check_savable(prepared: GraphModule, examples: Sequence[Any], request: _Request, notes: list[str]) -> None:
    """Refuse, before anything is learned, what will be saved and cannot; note it where nobody asked for a folder."""
    try:
        program.check(prepared, examples)
    except CheckpointError as error:
        if request.to_folder:
            raise
        notes.append(f"this result can be used and exported, but not saved: {error}")


def _convert(run: Run, subject: _Subject, plan: _Plan) -> QuantResult:
    """The result, and the report as far as the converted network tells it."""
    prepared, device, recipe = plan.network.graph, run.cache.device, run.config.recipe
    set_mode(prepared, Mode.HARD)
    received, first = run.inputs if run.received is None else run.received, ranks.current().first
    noise, outputs = first(lambda: tensor_noise(prepared, [value[:SAMPLES].to(device) for value in run.inputs]))
    lossy = first(lambda: _most_lossy(prepared, run.config, [value[:2].to(device) for value in run.inputs]))
    set_mode(prepared, Mode.HARD)
    converted = convert(prepared)
    few = [value[: check.SAMPLES].to(device) for value in received]
    differs = first(lambda: check.check_converted(prepared, converted, few))
    signed = activation_scheme(run.config) == "signed"
    left = ranges.record(converted, received, device, recipe.range_norm, recipe.range_candidates, signed, run.share)
    move(converted, device_of(subject.model))
    left_in_float = float_weights(plan.scope)
    notes = [f"fake quantization kernels: {kernels.backend(device)}", *([differs] if differs else []), *subject.notes]
    notes += [f"parameters in float: {left_in_float}"] if left_in_float else []
    notes += dict.fromkeys(run.cache.notes)
    for note in lossy:
        run.progress.note(note)
    notes += lossy
    notes += [spec.joined for spec in plan.specs if spec.joined]
    notes += weakest(outputs, plan.scope)
    if plan.started:
        notes.append(f"{len(plan.started)} weights started from the codes that the sensitivity table learned")
    report = Report(
        plan.scope, [], run.config.to_dict(), 0.0, versions(), subject.data.digest(), samples=len(subject.data),
        notes=notes, tensors=noise, outputs=outputs,
    )  # fmt: skip
    examples = tensors(example_batch(subject.arguments))
    prefix = getattr(subject.model, "wrapped", None)  # of a wrapper around another library's model
    return QuantResult(
        converted, report, run.config, examples,
        metadata={"wrapped": prefix} if isinstance(prefix, str) else {}, wrapped=subject.wrapped, run_state=run.state,
        ranges=left,
    )  # fmt: skip


PASSES = 8
"""Passes of one part of a network, at most: those of the next one are counted from the next multiple on."""


def _quantize_parts(
    model: nn.Module,
    calibration: Iterable[Any] | Tensor | Dataset,
    names: Sequence[str],
    request: _Request,
    run_dir: Path | str | None,
    resume: bool,
    progress: Progress,
    device: torch.device,
) -> CompositeResult:
    """Submodule after submodule, in the order they are called in: each is planned on what the float network gives it,
    and learned on what it receives behind the quantized ones before it."""
    names, config = parts.check_names(model, names), request.config
    calls = collect_calls(calibration, model)
    model, copied = in_float32(unwrap(model))
    notes = [note for note in (calls.note, copied) if note]
    for note in notes:
        progress.note(note)
    check_weights(model)
    recorded = _record(model, names, calls)
    subjects = [_part_subject(model, part) for part in recorded]
    requests = [
        _with_outliers_raised(subject, replace(request, part=_ends(part)), device, progress)
        for subject, part in zip(subjects, recorded, strict=True)
    ]
    silent = Progress()
    plans = [_plan(subject, mine, device, silent) for subject, mine in zip(subjects, requests, strict=True)]
    _check_rules(config, plans)
    entries = [*(entry for plan in plans for entry in plan.scope), *outside(model, names)]
    progress.scope(entries)
    rooms = [left_for_caches(plan.network, config) for plan in plans]
    state = _run_state(plans, calls.data, config, run_dir, resume)
    digest = calls.data.digest()
    report = Report(entries, [], config.to_dict(), 0.0, versions(), digest, samples=len(calls), notes=notes)
    interfaces = {part.name: part.interface for part in recorded}
    results: dict[str, QuantResult] = {}
    for number, (part, subject, plan) in enumerate(zip(recorded, subjects, plans, strict=True)):
        progress.stage(f"quantizing {part.name}")
        programs = {name: (done.converted, interfaces[name]) for name, done in results.items()}
        inputs, received = _received(model, part, programs, calls, device)
        cache = ActivationCache(device, rooms[number], run_dir)
        section = None if state is None else state.section(PASSES * number)
        share = ranks.current().share(len(inputs[0]))
        inputs = tuple(value[share.rows] for value in inputs)
        received = None if received is None else tuple(value[share.rows] for value in received)
        run = Run(plan.network, inputs, config, cache, None, section, progress, received, share)
        with run.working():
            reports, forwards = passes.run(run)
        result = results[part.name] = _convert(run, subject, plan)
        result.run_state = None
        result.report.blocks, result.report.block_forwards = reports, forwards
        report.blocks += reports
        report.block_forwards += forwards
        report.tensors += result.report.tensors
        report.outputs += [
            replace(each, name=f"{part.name}.{each.name}".rstrip(".")) for each in result.report.outputs
        ]
        report.notes += [f"{part.name}: {note}" for note in result.report.notes]
    result = CompositeResult(results, interfaces, report, config, model)
    result.run_state = state
    return result


def _record(model: nn.Module, names: Sequence[str], calls: Calls) -> list[parts.Part]:
    with running("the calibration data"):
        found = parts.record(model, names, list(calls))
    for part in found:
        try:
            check_data(Dataset(part.inputs))
        except DataError as error:
            raise DataError(f"submodule {part.name!r}: {error}") from error
    return found


def _part_subject(model: nn.Module, part: parts.Part) -> _Subject:
    flat = parts.Flat(part.name, model.get_submodule(part.name), part.interface)
    return _Subject(flat, part.inputs, Dataset(part.inputs), None, [])


def _ends(part: parts.Part) -> frozenset[End]:
    found: list[End] = ["first"] * part.first + ["last"] * part.last  # type: ignore[assignment]
    return frozenset(found)


def _received(
    model: nn.Module,
    part: parts.Part,
    programs: Mapping[str, tuple[nn.Module, parts.Interface]],
    calls: Calls,
    device: torch.device,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """What the float submodule is given, and what the quantized one is in its place.

    Rows that are the network's samples are the same pictures in both. Others (regions) the network chooses anew with
    each change of what comes before: there both get what the quantized network chooses.
    """
    if not programs:
        return part.inputs, None
    behind = parts.put_back(model, programs)
    with on_device(device, behind):
        (again,) = _record(behind, [part.name], calls)
    aligned = list(part.rows) == [parts.samples_of(inputs) for inputs in calls]
    return (part.inputs, again.inputs) if aligned else (again.inputs, None)


def _check_rules(config: QuantConfig, plans: Sequence[_Plan]) -> None:
    """Every rule and every named block is for some part."""
    layers = [entry.layer for plan in plans for entry in plan.scope if entry.weights]
    blocks = {spec.name for plan in plans for spec in plan.specs}
    for rule in config.rules:
        if not any(map(rule.matches, layers)):
            raise ConfigError(f"no layer matches {rule.pattern!r}; there are {', '.join(layers[:8])}, ...")
    for name, patterns in (config.blocks or {}).items():
        if name not in blocks:
            raise PartitionError(f"block {name!r}: {', '.join(patterns)} matches no layer of any submodule")


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
    inputs = Signature(model).order(example_inputs)
    model, _ = in_float32(model)
    request = _Request(config, quantizer)
    if submodules is not None:
        names = parts.check_names(model, submodules)
        found = []
        for part in parts.record(model, names, [inputs]):
            flat = parts.Flat(part.name, model.get_submodule(part.name), part.interface)
            found.append(_inspect(flat, part.inputs, replace(request, part=_ends(part)), sensitivity))
        blocks = [block for each in found for block in each.blocks]
        losses = sorted((loss for each in found for loss in each.losses), key=lambda loss: -loss.worst)
        entries = [*(entry for each in found for entry in each.scope), *outside(model, names)]
        return Inspection(blocks, entries, losses)
    if submodule is not None:
        target = Submodule(model, submodule, inputs)
        model, inputs = target.module, target.inputs
    return _inspect(model, inputs, request, sensitivity)


def _inspect(model: nn.Module, inputs: Inputs, request: _Request, sensitivity: bool) -> Inspection:
    prepared, specs = _prepare(model, example_batch(inputs), request)
    network = extract(prepared, specs)
    flow = Dataflow(prepared)
    summaries = []
    for spec, block in zip(specs, network.blocks, strict=True):
        parameters = sum(value.numel() for value in block.module.parameters())
        macs = sum(ops.macs(node) for node in flow.ops[spec.start : spec.stop] if ops.kind(node))
        summaries.append(BlockSummary(block.name, block.layers, block.inputs, block.outputs, parameters, macs))
    entries, cpu = scope(prepared, specs), torch.device("cpu")
    losses = alone.losses(network, tensors(inputs), request.config, cpu) if sensitivity else []
    return Inspection(summaries, entries, losses)


def _prepare(
    model: nn.Module, examples: Inputs, request: _Request, checked_on: Inputs | None = None
) -> tuple[GraphModule, list[BlockSpec]]:
    config, allocation = request.config, request.allocation
    captured = capture(model, examples, any_size=request.part is not None)
    reference = None if checked_on is None else check.FloatNetwork(model, checked_on)
    if reference is not None:
        reference.check(captured, "the captured graph")
    if allocation is not None:
        check_layers(captured, allocation)
    prepared = prepare(captured, request.quantizer or BrecqQuantizer(config, request.part))
    if reference is not None:
        reference.check(prepared, "the prepared graph")
    specs = partition(prepared, config.granularity, config.blocks, part=request.part is not None)
    for spec in specs:
        if spec.joined:
            warnings.warn(f"{spec.joined}: they are learned together, with more memory and time", stacklevel=3)
    return prepared, specs


def _run_state(
    plans: Sequence[_Plan], data: Dataset, config: QuantConfig, run_dir: Path | str | None, resume: bool
) -> RunState | None:
    saves = run_dir is not None and config.method != "rtn"
    if not saves and ranks.current().size == 1:
        return None
    relevant = {key: value for key, value in config.to_dict().items() if key != "memory_budget"}
    relevant["recipe"] = {k: v for k, v in relevant["recipe"].items() if not k.startswith("tun")}  # of no block
    blocks = [f"{block.name}: {', '.join(block.layers)}" for plan in plans for block in plan.network.blocks]
    tensors = [(i, plan.network.graph.state_dict() | plan.started) for i, plan in enumerate(plans)]
    weights = {f"{i or ''}{name}": value for i, named in tensors for name, value in named.items()}
    what = fingerprint(relevant, weights, data.digest(), blocks)
    agree(what)
    return RunState(run_dir, what, resume=resume) if run_dir is not None and saves else None
